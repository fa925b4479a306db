"""Arithmetic of repeated measurements: medians with their spread, ratios of neighbours, quantiles.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

IDLE_SECONDS = 1.5
"""What an engine that has just worked is left before another is measured.

vLLM's worker spins for a second after its last step, on the same core as every other's.
"""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of `count` measurements, the least and the most of them."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there is nothing."""
        if not values:
            raise ValueError("a spread of no values")
        return cls(median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        """`1.20 (1.10 to 1.31)`; one measurement has no spread."""
        median = f"{self.median:.{digits}f}"
        if self.count == 1:
            return median
        return f"{median} ({self.least:.{digits}f} to {self.most:.{digits}f})"

    def tree(self) -> dict[str, float | int]:
        return {
            "median": round(self.median, 4),
            "least": round(self.least, 4),
            "most": round(self.most, 4),
            "count": self.count,
        }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Each measurement over its neighbour in time, in the order they were made.

    Neighbours in time share the machine's mood; medians of different hours do not. Raises
    ValueError where they are not as many.
    """
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(1, ceil(share * len(ordered))) - 1]


def turn(number: int, sides: Sequence[str]) -> list[str]:
    """A B, B A, A B, …: who goes first changes, so that a drift favours nobody."""
    return list(sides) if number % 2 == 0 else list(sides)[::-1]
