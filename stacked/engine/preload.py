"""A process that imports vLLM while this one does, and from which vLLM's engine process is forked.

Importing vLLM takes a core more than ten seconds, and vLLM does it in each of its processes, one
after the other. Python's own fork server does it in parallel with this process instead. It is
forked before anything runs in it: no thread, event loop or socket is copied.

Relies on: ``get_mp_context`` of ``vllm.v1.engine.utils`` is what its engine processes are made
with, that of ``vllm.v1.engine.coordinator`` the one that counts the requests of several engines,
and their arguments can be pickled, as for spawned processes.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import context, forkserver
from typing import Any, ClassVar

from stacked.engine.orphans import end_with_parent

SWITCH = "STACKED_PRELOAD"
_MODULES = [
    "stacked.engine.quick_exit",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
]


def begin() -> None:
    """Start the importing process, and return at once. Later calls change nothing.

    The environment that vLLM and OpenMP read when they are imported must be complete by now.
    """
    if enabled():
        multiprocessing.set_forkserver_preload(_MODULES)
        forkserver.ensure_running()


def enabled() -> bool:
    """False if ``STACKED_PRELOAD=0`` or the system has no fork server."""
    known = "forkserver" in multiprocessing.get_all_start_methods()
    return known and os.environ.get(SWITCH, "1") != "0"


def use() -> None:
    """Have vLLM make its engine processes by forking that one, from now on."""
    if enabled():
        from vllm.v1.engine import coordinator, utils

        utils.get_mp_context = coordinator.get_mp_context = _Context


class _Process(context.ForkServerProcess):
    """A fork server's child has the server's environment; this one gets its parent's."""

    _environment: dict[str, str] | None = None

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        if self._environment is not None:
            os.environ.clear()
            os.environ.update(self._environment)
        end_with_parent()  # the process that counts requests calls no plugin of vLLM's
        super().run()


class _Context(context.ForkServerContext):
    Process: ClassVar[Any] = _Process
