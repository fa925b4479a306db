"""Keeps other work on a machine out of an engine's way: cores, threads and priorities."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# Enough to yield a shared core to the processes that serve requests, not enough to starve: a
# starved thread that holds the interpreter would hold up the worker's loop with it.
NICENESS = 5

# A chunk of work in a thread takes the core and the memory bus for about a millisecond, and leaves
# them for longer: another thread that is woken on that core may wait for the whole chunk.
_PAUSE_SECONDS = 0.002
_PAUSE_SHARE = 2.0

# The core that an engine's loop in this process has taken, with the open lock that others see.
_taken: dict[int, int] = {}


# Python's own 5 ms are an eighth of a step of a small base on a CPU.
_SWITCH_SECONDS = 0.0005


class Pauses:
    """Called between two chunks of a thread's work: sleeps for longer than the last one took."""

    def __init__(self) -> None:
        self._resumed = 0.0

    def __call__(self) -> None:
        worked = time.perf_counter() - self._resumed if self._resumed else 0.0
        time.sleep(max(_PAUSE_SECONDS, _PAUSE_SHARE * worked))
        self._resumed = time.perf_counter()


def hand_over_soon() -> None:
    """Have Python threads of this process switch more often than by default.

    A loop that gives up the interpreter for a moment, as at every operation of torch and every wait
    for a socket, gets it back only after another thread's turn.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)


def step_aside(device: Any) -> None:
    """Leave the cores that are bound to the worker, do not spread over others, and yield.

    Ignores what the system refuses. `device` is the worker's torch device.
    """
    me = threading.get_native_id()
    with suppress(OSError, AttributeError):  # not Linux, or no right to
        os.sched_setaffinity(me, spare_cores())
    yield_to_others()
    _one_openmp_thread()
    if getattr(device, "type", "cpu") == "cuda":
        import torch  # a new thread starts on GPU 0; pinned memory belongs to the worker's own

        torch.cuda.set_device(device)


def spare_cores() -> frozenset[int]:
    """The cores of this process, without those that a single one of its threads is bound to."""
    allowed = os.sched_getaffinity(os.getppid())
    return frozenset((allowed - _bound_cores()) or allowed)


@cache  # later the threads that stepped aside would count among the bound ones
def _bound_cores() -> frozenset[int]:
    if _taken:
        return frozenset(_taken)
    bound: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that ended meanwhile
            cores = os.sched_getaffinity(int(task.name))
            if len(cores) == 1:
                bound |= cores
    return frozenset(bound)


def take_core(cores: Collection[int]) -> int | None:
    """Bind the calling thread, an engine's loop that computes alone, to one of these cores.

    Other threads are woken on any core that is idle for a moment, and then delay a step by two or
    three time slices. None if no core would be left, another engine on this machine has taken
    one, or the system refuses. Follow with `give_core`.
    """
    import torch

    if len(cores) < 2 or torch.get_num_threads() > 1:
        return None
    core = max(cores)
    with suppress(OSError, AttributeError, ImportError):
        if core in _taken or _is_first_to_take(core):
            use_cores({*cores} - {core})
            os.sched_setaffinity(threading.get_native_id(), {core})
            _bound_cores.cache_clear()
            return core
    return None


def give_core(cores: Collection[int]) -> None:
    """Let all threads of this process use each of these cores again, if it took one of them."""
    if not _taken:
        return
    use_cores(cores)
    while _taken:
        os.close(_taken.popitem()[1])
    _bound_cores.cache_clear()


def use_cores(cores: Collection[int]) -> None:
    """Restrict every thread of this process, and those they start, to these cores."""
    for task in Path("/proc/self/task").glob("[0-9]*"):
        with suppress(OSError, AttributeError):  # a thread that ended meanwhile; not Linux
            os.sched_setaffinity(int(task.name), cores)


def yield_to_others() -> None:
    """Lower the calling thread's priority."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _is_first_to_take(core: int) -> bool:
    import fcntl

    path = Path(tempfile.gettempdir()) / f"stacked-core-{core}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _taken[core] = lock  # the system closes it when the process dies
    return True


def _one_openmp_thread() -> None:
    """OpenMP keeps this per thread; torch's own setter would change it for the whole process."""
    import torch

    torch.empty(1).fill_(0.0)  # torch sets its own number in a thread's first operation
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(library).omp_set_num_threads(1)
            return
