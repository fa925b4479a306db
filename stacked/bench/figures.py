"""Arithmetic of repeated measurements: medians with their spread, ratios of pairs, quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from operator import attrgetter
from statistics import median
from typing import TypeVar

M = TypeVar("M")
Window = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, minimum and maximum of `count` measurements."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without measurements."""
        if not values:
            raise ValueError("a spread of no values")
        return cls(median(values), min(values), max(values), len(values))

    def __format__(self, form: str) -> str:
        """`1.20 (1.10 to 1.31)` for `.2f`; one measurement has no spread."""
        if self.count == 1:
            return format(self.median, form)
        return f"{self.median:{form}} ({self.least:{form}} to {self.most:{form}})"

    def tree(self) -> dict[str, float | int]:
        return {
            "median": round(self.median, 4),
            "least": round(self.least, 4),
            "most": round(self.most, 4),
            "count": self.count,
        }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratio of each measurement to the one made next to it, in order.

    Measurements next to each other saw the machine in the same state; medians of different hours
    did not. Raises ValueError if their numbers differ.
    """
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(1, ceil(share * len(ordered))) - 1]


def turn(number: int, sides: Sequence[str]) -> list[str]:
    """A B, B A, A B, …: the order alternates, so that a drift favours neither."""
    return list(sides) if number % 2 == 0 else list(sides)[::-1]


def in_order(measured: Iterable[M], **wanted: object) -> list[M]:
    """The measurements whose attributes are as wanted, by their round."""
    found = [
        each
        for each in measured
        if all(getattr(each, name) == value for name, value in wanted.items())
    ]
    return sorted(found, key=attrgetter("round"))


def gaps_within(arrivals: Sequence[Sequence[float]], window: Window) -> list[float]:
    """Seconds between tokens of one stream, of every gap that lies in the window or crosses it."""
    since, until = window
    return [
        after - before
        for times in arrivals
        for before, after in pairwise(times)
        if after >= since and before <= until
    ]
