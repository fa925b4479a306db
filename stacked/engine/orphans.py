"""Ends every process that vLLM starts when the process that started it is gone, however it went.

It is the plugin that vLLM calls in each of its processes, so it has them write down why they fail
too, see `causes`.

A killed server cannot tell anybody, and vLLM's engine core then polls for requests for ever, its
worker with it. Python's multiprocessing gives each process a pipe whose other end only its parent
has: it ends when the parent does, also where that was before anybody looked, and also where a fork
server stands between them. The kernel's own signal for a parent's death (``PR_SET_PDEATHSIG``)
follows the *thread* that started the child, and the server starts its engine from one that ends.

Relies on: processes that vLLM starts are children of Python's multiprocessing,
and call the plugins of ``vllm.platform_plugins`` when they import vLLM (one that returns None is
passed over) and those of ``vllm.general_plugins`` when they are set up.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

from stacked.engine.causes import listen

_NAME = "stacked-parent-watch"


def end_with_parent() -> None:
    """Watch this process's parent from a thread; calling twice is calling once.

    Does nothing in a process that multiprocessing has not started: the server itself.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        listen()
    if parent is None or any(thread.name == _NAME for thread in threading.enumerate()):
        return
    threading.Thread(target=_watch, args=(parent,), name=_NAME, daemon=True).start()


def _watch(parent: Any) -> None:
    parent.join()
    # Nobody is left to answer to, and a clean end would wait for other processes.
    os._exit(1)
