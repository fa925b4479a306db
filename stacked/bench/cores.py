"""Keeps the load off the core that an engine under test computes on.

Clients are elsewhere where users are. On a machine of few cores the system wakes them on whichever
core is free for a moment, also on the engine's, and then times itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from stacked.bench.memory import descendants
from stacked.engine.cpu_affinity import use_cores
from stacked.engine.machine import CORES


def engine_core(seconds: float) -> int | None:
    """The core of the one thread that works most for so long, of those bound to one core.

    Threads of this process's descendants count. None where there is no such thread.
    """
    before = _spent()
    time.sleep(seconds)
    worked = {task: spent - before.get(task, 0) for task, spent in _spent().items()}
    return max(worked, key=lambda task: worked[task])[1] if worked else None


def _spent() -> dict[tuple[int, int], int]:
    """What each thread that is bound to one core has spent there, by its id and core."""
    spent: dict[tuple[int, int], int] = {}
    for process in descendants(os.getpid())[1:]:
        for task in Path(f"/proc/{process}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                cores = os.sched_getaffinity(int(task.name))
                if len(cores) == 1:
                    times = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
                    spent[int(task.name), cores.pop()] = sum(map(int, times))
    return spent


@contextlib.contextmanager
def off_engine_core(seconds: float) -> Iterator[None]:
    """Watch for so long; within the block, this process's threads leave the engine's core.

    Where no thread is bound and there are two cores, that is the last one, which ours takes for
    the time of an update.
    """
    core = engine_core(seconds)
    if core is None and len(CORES) == 2:
        core = max(CORES)
    if CORES - {core}:
        use_cores(CORES - {core})
    try:
        yield
    finally:
        use_cores(CORES)
