"""Which processes a process has started, from /proc, and whether any of them is still there.

A number may be used again, so a process is its number and the moment in which it began.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

Process = tuple[int, str]
"""Its number, and when it began (in ticks since the system did)."""


def descendants(pid: int) -> dict[Process, str]:
    """Everything that `pid` has started, and what that has started: process -> command line."""
    children: dict[int, list[int]] = {}
    began: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            began[int(entry.name)] = fields[19]
    found: dict[Process, str] = {}
    ask = [pid]
    while ask:
        for child in children.get(ask.pop(), ()):
            found[child, began[child]] = _command(child)
            ask.append(child)
    return found


def alive(processes: Collection[Process]) -> list[Process]:
    """Those that still run. One that has ended and was not yet waited for does not."""
    found = []
    for pid, began in processes:
        fields = _stat(pid)
        if fields is not None and fields[19] == began and fields[0] not in "ZX":
            found.append((pid, began))
    return found


def wait_until_gone(processes: dict[Process, str], seconds: float = 20) -> None:
    """Return when none of them runs; AssertionError with their names where some still do."""
    deadline = time.monotonic() + seconds
    while left := alive(processes):
        if time.monotonic() > deadline:
            told = [f"{process[0]}: {processes[process][:120]}" for process in left]
            raise AssertionError(f"still there after {seconds} s: {told}")
        time.sleep(0.05)


def resident_bytes(pid: int) -> int:
    """How much of a process is in memory now."""
    return _memory(pid, "VmRSS:")


def peak_bytes(pid: int) -> int:
    """How much of a process has been in memory at most."""
    return _memory(pid, "VmHWM:")


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} tells no {name}")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: 0 the state, 1 the parent, 19 the start."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "?"
