"""The processes of one engine: how they ended, and their end where they answer no more."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

# From the report of a death to the end of the process that reported its own.
_LAST_SECONDS = 5.0

# vLLM's names of the processes of several engines, by rank, and of the one that counts their
# requests, without which they serve on.
_ENGINE, _COUNTING = "EngineCore_DP", "VLLM_DP_Coordinator"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an engine ended. `code` is its exit code, or a signal as a negative number.

    `oom` if the kernel killed processes for memory meanwhile.
    """

    code: int | None = None
    oom: bool = False
    who: str = "it"
    """Which of several engines it was."""

    @property
    def killed(self) -> bool:
        return self.code is not None and self.code < 0

    def __str__(self) -> str:
        if self.code is None:
            return "it is gone"
        if not self.killed:
            return f"{self.who} ended with exit code {self.code}"
        memory = ", probably out of memory" if self.oom else ""
        return f"{self.who} was killed by signal {-self.code} ({_name(-self.code)}{memory})"


class Processes:
    """The processes that an engine was started as."""

    def __init__(self, started: Sequence[BaseProcess]) -> None:
        self._started = started
        self._oom_kills = oom_kills()
        self.first: str | None = None
        """The name of the engine that ended first, or had to be: the others are ended then."""
        self._engines = [each for each in started if each.name != _COUNTING]
        if self._engines:
            threading.Thread(target=self._watch, name="stacked-first-end", daemon=True).start()

    def _watch(self) -> None:
        # Exit codes are left to the others: of two that read one at once, one gets a wrong one.
        ended = wait([each.sentinel for each in self._engines])
        first = next(each.name for each in self._engines if each.sentinel in ended)
        self.first = self.first or first

    @property
    def rank(self) -> int | None:
        """That of the engine which ended first; None if none has, or if there is but one."""
        _, several, rank = (self.first or "").rpartition(_ENGINE)
        return int(rank) if several else None

    def ended(self) -> Ended:
        """Wait a moment for the end of those that are dying; blocks. The first one's end is told.

        Those that live on are not waited for any longer.
        """
        if self._engines:
            wait([each.sentinel for each in self._engines], _LAST_SECONDS)
        failed = [each for each in self._engines if each.exitcode]
        failed.sort(key=lambda each: each.name != self.first)
        before, now = self._oom_kills, oom_kills()
        oom = before is not None and now is not None and now > before
        if not failed:
            return Ended(None, oom)
        return Ended(failed[0].exitcode, oom, failed[0].name if len(self._engines) > 1 else "it")

    def kill(self, silent: Collection[int] = ()) -> None:
        """End them and what they have started, whatever state they are in.

        `silent` are the ranks of those that answer no more.
        """
        if len(self._engines) > 1 and len(silent) == 1:
            self.first = f"{_ENGINE}{next(iter(silent))}"
        for each in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(each.pid)
                for one in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes of this control group the kernel has killed for memory.

    None where that cannot be read: on other systems, and outside of a group.
    """
    for counter in _counters(root):
        with contextlib.suppress(OSError, ValueError):
            pairs = (line.split() for line in counter.read_text(encoding="ascii").splitlines())
            found = dict(pair for pair in pairs if len(pair) == 2)
            if "oom_kill" in found:
                return int(found["oom_kill"])
    return None


def _counters(root: Path) -> Iterator[Path]:
    """Where a process's group may count, in either version of control groups.

    A container may see its own group as the root, under the path that it has outside.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    groups = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for below in (path.strip("/"), ""):
            if not controllers:
                yield groups / below / "memory.events"
            elif "memory" in controllers.split(","):
                yield groups / "memory" / below / "memory.oom_control"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
