"""The steps of long work as values, and what they are reported to.

Percentages, log lines, reasons and progress bars are made from them; none is read back.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Protocol, Self


class Step(enum.Enum):
    """A step of some work: what is done in it, and its share of the whole in percent.

    Steps follow each other in the order of definition. The shares of one enum add up to 99: 100
    is reserved for work that has succeeded, since clients take it for the end.
    """

    share: float
    begins: float

    def __new__(cls, text: str, share: float) -> Self:
        step = object.__new__(cls)
        step._value_ = text
        step.share = share
        step.begins = sum(each.share for each in cls.__members__.values())
        return step

    def percent(self, done: float) -> float:
        """The percentage of the whole when `done` of this step is over, 0 to 1."""
        return self.begins + self.share * min(max(done, 0.0), 1.0)


class Start(Step):
    """An engine comes up for a group, perhaps in place of another."""

    CHECK = "Checking the members", 3
    READ = "Reading the group and its base", 2
    MAKE_ROOM = "Ending the old engine first", 5  # where two do not fit at once
    IMPORT = "Importing vLLM", 10
    CREATE = "Starting the engine and loading the base", 10
    WORKER = "Starting the engine's worker", 5
    WEIGHTS = "Loading the base's weights", 12
    PROFILE = "Warming up the engine", 13
    WARM = "Warming the adapters' memory", 5
    LOAD = "Loading the members", 20
    VERIFY = "Verifying the members", 5
    RETIRE = "Ending the old engine", 9


class Stop(Step):
    """An engine ends, and none follows."""

    RETIRE = "Ending the engine", 99


class Phase(Step):
    """A LIVE update. Until SWITCH the old group serves and every failure leaves it so."""

    PLAN = "planning", 2  # the difference is known; nothing has been done
    STAGE = "staging", 58  # new adapters are read into the engine's host memory
    VERIFY = "verifying", 15  # canaries run on the new adapters and on the base
    COMMIT = "committing", 5  # the new group is being made durable
    SWITCH = "switching", 2  # requests admitted from here on see the new group
    DRAIN = "draining", 13  # requests of the old group finish
    REMOVE = "removing", 4  # adapters that nobody uses leave the engine
    DONE = "done", 0  # nothing of the old group is left


class Prepare(Step):
    """A base is fetched and converted."""

    FETCH = "Fetching", 60
    CHECK = "Checking what came", 4
    CONVERT = "Converting it to bfloat16 safetensors", 35


def sentence(step: Step, detail: str = "") -> str:
    """A step in words, for people."""
    return f"{step.value}: {detail}" if detail else str(step.value)


class Progress(Protocol):
    """Receives the progress of long work: a terminal, a log, or nothing."""

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        """The steps before are done, and `done` of this one, 0 to 1."""

    def note(self, text: str) -> None:
        """Something worth a line that is not a step: a plan, a warning."""

    def finish(self, text: str) -> None:
        """The work is over; `text` says what runs now."""


class Silent:
    """A Progress that shows nothing."""

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self, text: str) -> None: ...


class Heard:
    """A Progress that passes everything on, and calls `hear` with the sentence of each step."""

    def __init__(self, inner: Progress, hear: Callable[[str], None]) -> None:
        self._inner = inner
        self._hear = hear

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        self._hear(sentence(step, detail))
        self._inner.step(step, done, detail)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def finish(self, text: str) -> None:
        self._inner.finish(text)


class Counted:
    """Reports how many parts of one step are done.

    At most once a second, besides the first and the last: a group may have 500 adapters.
    """

    def __init__(self, tell: Progress, step: Step, total: int) -> None:
        self._tell = tell
        self._step = step
        self._total = total
        self._reported = 0.0

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if count in (1, self._total) or now - self._reported >= 1.0:
            self._reported = now
            self._tell.step(self._step, count / self._total, f"{count}/{self._total}")
