"""What processes take of a machine: memory of a process with its descendants, GPUs, and a core.

Read from Linux's /proc and `nvidia-smi`; elsewhere 0, which tables show as unknown.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from stacked.engine.cpu_affinity import use_cores
from stacked.engine.machine import CORES, nvidia_smi


def descendants(process: int) -> list[int]:
    """The process and its running descendants."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything; the parent is the second word after it.
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found = [process]
    for each in found:  # grows during the loop
        found += children.get(each, [])
    return found


def forget_peaks(process: int | None = None) -> None:
    """Reset the peaks of a process and its descendants to their current sizes."""
    for each in descendants(process or os.getpid()):
        with contextlib.suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")


def peak_bytes(process: int | None = None) -> int:
    """The sum of the largest resident sizes of a process and its descendants, in bytes.

    Memory that they share counts for each of them.
    """
    return sum(_peak(each) for each in descendants(process or os.getpid()))


def gpu_bytes() -> int:
    """What is taken on the GPUs that this process may see, by anyone, in bytes."""
    lines = nvidia_smi("memory.used")
    return sum(int(line) * 1024**2 for line in lines if line.strip().isdigit())


def forget_files(directories: Iterable[Path]) -> list[Path]:
    """Evict the directories' files from the page cache, as far as their owner may; the files.

    Pages that a process has mapped stay, and so do libraries: dropping the whole cache needs rights
    that a benchmark should not have.
    """
    files = [file for path in directories for file in sorted(path.iterdir()) if file.is_file()]
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return files


def _peak(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


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

    Real clients are on other machines. With few cores the system wakes the benchmark's clients on
    any core that is idle for a moment, including the engine's, and distorts its figures.
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
