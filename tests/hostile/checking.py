"""One check in a process of its own, which is held to an amount of memory and of time."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from stacked.errors import StackedError

MEMORY = 2 << 30
"""Bytes of address space above what the process has before."""
SECONDS = 60
"""The longest that our own limits allow: two separate processes of 30 s each."""


@dataclass(frozen=True)
class Outcome:
    """What became of a check: `refused` by a class, `passed`, or a fault."""

    kind: str
    detail: str
    seconds: float
    peak_kib: int

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("refused", "passed")


def checked(check: Callable[[], str]) -> Outcome:
    """Run `check` in a fork; what it returns is `detail` where it passed, else the error's code."""
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _confine()
        os.write(writer, json.dumps(_told(check)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind, detail = ("hang" if number == signal.SIGALRM else "death"), f"signal {number}"
    else:
        kind, detail = json.loads(told)
    return Outcome(kind, detail, time.monotonic() - began, usage.ru_maxrss)


def _told(check: Callable[[], str]) -> tuple[str, str]:
    try:
        return "passed", check()
    except StackedError as error:
        return "refused", error.code
    except MemoryError:
        return "memory", ""
    except BaseException as error:  # noqa: BLE001 - it is what is looked for
        return "not ours", f"{type(error).__name__}: {error}"[:500]


def _confine() -> None:
    with open("/proc/self/statm") as file:
        there = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
