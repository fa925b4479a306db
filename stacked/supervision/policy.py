"""What follows from deaths of engines: another start, an adapter that is left out, the end.

Pure: no clock, no engine.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from stacked.config import SupervisionConfig
from stacked.core import Digest


class Cause(enum.Enum):
    EXIT = "exit"  # it ended by itself, as after an error
    SIGNAL = "signal"  # something killed it
    OOM = "oom"  # the kernel killed it, for memory
    HANG = "hang"  # it made no step any more, and was ended
    START = "start"  # it did not come up again


# Memory that is short says nothing about requests in flight.
_BLAMABLE = frozenset({Cause.EXIT, Cause.SIGNAL, Cause.HANG})


@dataclass(frozen=True, slots=True)
class Death:
    """The end of an engine that had served for so many seconds; 0 if it did not come up."""

    served: float
    cause: Cause
    in_flight: frozenset[Digest | None] = frozenset()
    """What had requests then, or was being loaded at a start; None is the base."""

    @property
    def blamable(self) -> bool:
        """Whether it says something about what was in flight."""
        return self.cause in _BLAMABLE or (self.cause is Cause.START and bool(self.in_flight))

    @property
    def adapters(self) -> frozenset[Digest]:
        return frozenset(digest for digest in self.in_flight if digest is not None)


@dataclass(frozen=True, slots=True)
class Decision:
    """`wait` is how many seconds to wait before the next start; None: give up."""

    wait: float | None
    quarantine: Digest | None = None
    """An adapter that is not to be served any more."""


def decide(deaths: Sequence[Death], rules: SupervisionConfig) -> Decision:
    """What follows from these deaths, of which the last one has just happened."""
    row = _in_a_row(deaths, rules.window.total_seconds())
    first = rules.backoff.total_seconds()
    if deaths[-1].blamable:
        blamable = [death for death in row if death.blamable]
        culprit = _culprit(blamable, rules.quarantine_after)
        if culprit is not None:
            return Decision(first, culprit)
    if len(row) >= rules.deaths:
        return Decision(None)
    # Beyond 2**16 the longest wait has been reached, whatever the first one was.
    doubled = first * 2 ** min(16, len(row) - 1)
    return Decision(min(doubled, rules.longest_backoff.total_seconds()))


def _in_a_row(deaths: Sequence[Death], window: float) -> Sequence[Death]:
    """The last deaths, from the last one on whose engine had served for longer than `window`."""
    long = [at for at, death in enumerate(deaths) if death.served > window]
    return deaths[max(long, default=0) :]


def _culprit(deaths: Sequence[Death], many: int) -> Digest | None:
    """The one adapter that was in flight at each of the last deaths.

    Two that always were could each be it: none of them is blamed. One at the last death, and one
    alone or among others being loaded at those before: fewer deaths are enough.
    """
    fewer = max(2, many - 1)
    last = deaths[-fewer:]
    narrow = all(death.cause is Cause.START or len(death.in_flight) == 1 for death in last)
    for count in (fewer, many) if narrow and len(last[-1].in_flight) == 1 else (many,):
        common = reduce(frozenset.intersection, (death.adapters for death in deaths[-count:]))
        if len(deaths) >= count and len(common) == 1:
            return next(iter(common))
    return None
