"""What shadow traffic has shown so far: sums for each pair of contents, and metrics of them.

Bounded, whatever is copied for however long. All of it is gone with the process.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from stacked import metrics
from stacked.experiments.comparison import Answered, Scores, Tally

# Every update may bring new ones.
_MOST_LINES = 100


class Line(NamedTuple):
    """Which requests were copied to what: by the contents, so that no two are mixed."""

    key: str
    to: str
    served: str
    """The digest of what answered, or `base`."""
    shadow: str
    """The same of the other model; empty once it is not served any more."""


class Sample(NamedTuple):
    """One comparison with its texts."""

    line: Line
    outcome: str
    request: Mapping[str, Any]
    answer: str
    copy_answer: str


class Findings:
    """The tallies by line, the newest last, and the newest `samples`."""

    def __init__(self, samples: int) -> None:
        self.tallies: OrderedDict[Line, Tally] = OrderedDict()
        self.samples: deque[Sample] = deque(maxlen=samples)

    def dropped(self, line: Line, why: str) -> None:
        """A copy was not made, or not finished."""
        self._tally(line).dropped[why] += 1
        metrics.shadowed(line.key, line.to, f"dropped_{why}")

    def failed(self, line: Line, code: str) -> None:
        """A copy was answered with an error, of this code or status."""
        self._tally(line).failed[code] += 1
        metrics.shadowed(line.key, line.to, "failed")

    def compared(
        self,
        line: Line,
        request: Mapping[str, Any],
        served: Answered,
        shadow: Answered,
        scores: Scores | None,
        *,
        greedy: bool,
    ) -> None:
        """A copy was answered."""
        outcome = self._tally(line).add(served, shadow, scores, greedy=greedy)
        metrics.shadowed(line.key, line.to, outcome)
        if scores is not None:
            metrics.shadow_scored(line.key, line.to, *scores)
        if self.samples.maxlen:
            self.samples.append(Sample(line, outcome, request, served.text, shadow.text))

    def _tally(self, line: Line) -> Tally:
        tally = self.tallies.setdefault(line, Tally())
        self.tallies.move_to_end(line)
        if len(self.tallies) > _MOST_LINES:
            old, _ = self.tallies.popitem(last=False)
            if not any((each.key, each.to) == (old.key, old.to) for each in self.tallies):
                metrics.forget_shadow(old.key, old.to)
        return tally
