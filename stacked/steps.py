"""The steps of long work as values, and who is told of them.

A percentage, a log line, a reason and a bar are made from them; nobody reads one back.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Protocol, Self


class Step(enum.Enum):
    """A step of some work: what is done in it, and its share of the whole in percent.

    Steps follow each other as they are defined, so that percentages only grow. All shares of one
    work make 99: that it is over, and well, is said by its status.
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
        """How much of the whole is done when so much of this step is, 0 to 1."""
        return self.begins + self.share * min(max(done, 0.0), 1.0)


class Start(Step):
    """An engine comes up for a group, perhaps in place of another."""

    CHECK = "Checking adapters", 3
    MAKE_ROOM = "Ending the old engine first", 5  # where two do not fit beside each other
    READ = "Reading the group and its base", 2
    IMPORT = "Importing vLLM", 10
    CREATE = "Starting the engine and loading the base", 10
    WORKER = "Starting the engine's worker", 5
    WEIGHTS = "Loading the base's weights", 12
    PROFILE = "Warming up the engine", 13
    WARM = "Warming the adapters' memory", 5
    LOAD = "Loading adapters into the engine", 20
    VERIFY = "Verifying the adapters", 5
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
    """A step in words."""
    return f"{step.value}: {detail}" if detail else str(step.value)


class Progress(Protocol):
    """Who is told what long work is doing: a terminal, a log, or nobody."""

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        """The steps before are done, and so much of this one is, 0 to 1."""

    def note(self, text: str) -> None:
        """Something worth a line that is not a step: a plan, a warning."""

    def finish(self, text: str) -> None:
        """The work is over; `text` says what stands now."""


class Silent:
    """The Progress of callers that do not want to be told."""

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self, text: str) -> None: ...


class Heard:
    """A Progress whose steps are given to `hear` in words too, and that passes all on."""

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
    """A step of many parts, told with how many are done.

    At most once a second, besides the first and the last: a group may have 500 adapters.
    """

    def __init__(self, tell: Progress, step: Step, total: int) -> None:
        self._tell = tell
        self._step = step
        self._total = total
        self._told = 0.0

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if count in (1, self._total) or now - self._told >= 1.0:
            self._told = now
            self._tell.step(self._step, count / self._total, f"{count}/{self._total}")
