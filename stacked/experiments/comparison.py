"""Whether two models' answers to one request agree, and what many such comparisons have found.

Texts are compared as a reader would: without what precedes the end of a model's thoughts, and with
any white space alike. They say something only where no chance took part in the choice of tokens.
How probable each model finds the answer that was given says something for every request.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

from stacked.experiments.scores import canonical
from stacked.experiments.statistics import Interval, Sample, mean_of

_THOUGHT = "</think>"
_FENCED = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_Z = NormalDist().inv_cdf(0.975)


class Answered(NamedTuple):
    """What is compared of an answer."""

    text: str
    tokens: int
    seconds: float


class Scores(NamedTuple):
    """The mean logprob, by token, of the served answer: under its own model and the shadow's."""

    served: float
    shadow: float


@dataclass(frozen=True, slots=True)
class Part:
    """How many of all, and between which parts of all there may be it is (95 %, Wilson's)."""

    count: int
    total: int
    low: float
    high: float

    @classmethod
    def among(cls, count: int, total: int) -> Part | None:
        """None of nothing."""
        if not total:
            return None
        part, more = count / total, _Z * _Z / total
        middle = part + more / 2
        half = _Z * math.sqrt((part * (1 - part) + more / 4) / total)
        # Where all or none do, rounding would leave the exact bound.
        low, high = (middle - half) / (1 + more), (middle + half) / (1 + more)
        return cls(count, total, max(0.0, min(low, part)), min(1.0, max(high, part)))


@dataclass
class Mean:
    """A mean and variance of numbers that are added one by one (Welford's algorithm)."""

    count: int = 0
    value: float = 0.0
    _squares: float = 0.0

    def add(self, number: float) -> None:
        self.count += 1
        away = number - self.value
        self.value += away / self.count
        self._squares += away * (number - self.value)

    @property
    def variance(self) -> float:
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass
class Means:
    """The means of a number of both models, and of the shadow's minus the other's."""

    served: Mean = field(default_factory=Mean)
    shadow: Mean = field(default_factory=Mean)
    difference: Mean = field(default_factory=Mean)

    def add(self, served: float, shadow: float) -> None:
        self.served.add(served)
        self.shadow.add(shadow)
        self.difference.add(shadow - served)

    @property
    def interval(self) -> Interval | None:
        """The difference, with bounds that hold at every look; None before there are enough."""
        found = self.difference
        return mean_of(Sample(found.count, found.value, found.variance))


@dataclass
class Tally:
    """What the copies of one key's requests to one other model have shown."""

    copies: int = 0
    greedy: int = 0
    """Those in whose answers no chance took part: of these, `same` are the same."""
    same: int = 0
    json: int = 0
    """Those of `greedy` whose served answer is JSON: of these, `json_same` are equal JSON."""
    json_same: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Copies that were answered with an error, by its code or status."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Copies that were not made or not finished, by reason."""
    tokens: Means = field(default_factory=Means)
    seconds: Means = field(default_factory=Means)
    logprob: Means = field(default_factory=Means)
    """By token, of the same answers: those that were served."""

    @property
    def same_part(self) -> Part | None:
        return Part.among(self.same, self.greedy)

    @property
    def json_part(self) -> Part | None:
        return Part.among(self.json_same, self.json)

    def add(
        self, served: Answered, shadow: Answered, scores: Scores | None, *, greedy: bool
    ) -> str:
        """Count a comparison; its outcome: `same`, `different`, or `sampled` if not greedy."""
        self.copies += 1
        self.tokens.add(served.tokens, shadow.tokens)
        self.seconds.add(served.seconds, shadow.seconds)
        if scores is not None:
            self.logprob.add(scores.served, scores.shadow)
        if not greedy:
            return "sampled"
        same = same_text(served.text, shadow.text)
        self.greedy += 1
        self.same += same
        if (given := as_json(served.text)) is not None:
            self.json += 1
            self.json_same += given == as_json(shadow.text)
        return "same" if same else "different"


def same_text(one: str, other: str) -> bool:
    return _read(one) == _read(other)


def as_json(text: str) -> str | None:
    """The one form of the JSON object or array that an answer is; None if it is none.

    A fence of Markdown around it is no part of it.
    """
    text = text.rpartition(_THOUGHT)[2].strip()
    fenced = _FENCED.fullmatch(text)
    try:
        found = canonical(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return found if found[0] in "{[" else None


def _read(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.rpartition(_THOUGHT)[2]).split())
