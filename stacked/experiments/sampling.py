"""Which of many requests are chosen: a given part of them, in no pattern that theirs could meet."""

from __future__ import annotations

import random

# The multiples of the golden ratio lie more evenly in the unit interval than those of any other
# number. Every fifth request would often be the same client's, chance would be off by more.
_STEP = 0.6180339887498949


class Portion:
    """Chooses `percent` of the times that it is called: over any stretch, a few more or less."""

    def __init__(self, percent: float, start: float | None = None) -> None:
        """`start`: between 0 and 1, None: by chance."""
        self._part = percent / 100
        self._at = random.random() if start is None else start

    def __call__(self) -> bool:
        self._at = (self._at + _STEP) % 1.0
        return self._at < self._part
