"""Ends every process that vLLM starts when the process that started it ends, for whatever reason.

This is the plugin that vLLM calls in each of its processes, so it also has them record why they
fail, see `causes`.

A killed server cannot notify its children, and vLLM's engine core and worker would then poll for
requests for ever. Python's multiprocessing gives each process a pipe whose other end only its
parent has: it closes when the parent ends, even if that was before anything watched it, and even
with a fork server in between. The kernel's own signal for a parent's death (``PR_SET_PDEATHSIG``)
follows the *thread* that started the child, and the server starts its engine from one that ends.

Relies on: processes that vLLM starts are children of Python's multiprocessing,
and call the plugins of ``vllm.platform_plugins`` when they import vLLM (one that returns None is
ignored) and those of ``vllm.general_plugins`` when they are set up.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

from stacked.engine.causes import listen

_NAME = "stacked-parent-watch"


def end_with_parent() -> None:
    """Watch this process's parent from a thread. Idempotent.

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
    # No caller is left, and a clean exit would wait for other processes.
    os._exit(1)
