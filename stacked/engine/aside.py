"""Moves the calling thread out of an engine worker's way: its cores, its threads, its priority.

It owns what the operating system lets one thread say about itself; it must not know what the
thread is about to do.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# Enough to yield a shared core to the processes that serve requests, not enough to starve: a
# starved thread that holds the interpreter would hold up the worker's loop with it.
NICENESS = 5


def step_aside(device: Any) -> None:
    """Leave the cores that are bound to the worker, do not spread over others, and yield.

    What the system refuses is left as it is. `device` is the worker's torch device.
    """
    me = threading.get_native_id()
    with suppress(OSError, AttributeError):  # not Linux, or no right to
        os.sched_setaffinity(me, spare_cores())
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, me, NICENESS)
    _one_openmp_thread()
    if getattr(device, "type", "cpu") == "cuda":
        import torch  # a new thread starts on GPU 0; pinned memory belongs to the worker's own

        torch.cuda.set_device(device)


@cache  # later the threads that stepped aside would count among the bound ones
def spare_cores() -> frozenset[int]:
    """The cores this process was given, less those that one of its threads alone is bound to."""
    allowed = os.sched_getaffinity(os.getppid())
    bound: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that ended meanwhile
            cores = os.sched_getaffinity(int(task.name))
            if len(cores) == 1:
                bound |= cores
    return frozenset((allowed - bound) or allowed)


def _one_openmp_thread() -> None:
    """OpenMP keeps this per thread; torch's own setter would change it for the whole process."""
    import torch

    torch.empty(1).fill_(0.0)  # torch sets its own number in a thread's first operation
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(library).omp_set_num_threads(1)
            return
