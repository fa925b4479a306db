"""Keeps the load off the core that an engine under test computes on.

Real clients are on other machines. On a machine with few cores the system wakes the benchmark's
clients on any core that is idle for a moment, including the engine's, and distorts its figures.
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
    """The core of the busiest thread that is bound to one core, measured for so long.

    Only threads of this process's descendants count. None if there is no such thread.
    """
    before = _spent()
    # The window that is measured.
    time.sleep(seconds)
    worked = {task: spent - before.get(task, 0) for task, spent in _spent().items()}
    return max(worked, key=lambda task: worked[task])[1] if worked else None


def _spent() -> dict[tuple[int, int], int]:
    """The time that each thread bound to one core has spent there, by its id and core."""
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
    """Measure for so long; within the block, this process's threads leave the engine's core.

    If no thread is bound and there are two cores, that is the last one, which our engine takes
    during an update.
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
