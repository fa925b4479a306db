"""Things in the order of a number that each has, which may change."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

T = TypeVar("T")

# Entries of what has moved stay in the heap until they are the first, or until they are the most.
_LEAST_ENTRIES = 64


class Order(Generic[T]):
    """Each thing once, the least number first, equal ones as they came; O(log n) to move one."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []
        self._places: dict[T, int] = {}
        self._counter = itertools.count()

    def __len__(self) -> int:
        return len(self._places)

    def put(self, thing: T, number: float) -> None:
        """Add a thing, or move it."""
        place = self._places[thing] = next(self._counter)
        heapq.heappush(self._entries, (number, place, thing))
        if len(self._entries) > max(_LEAST_ENTRIES, 2 * len(self._places)):
            self._entries = [entry for entry in self._entries if self._current(entry)]
            heapq.heapify(self._entries)

    def remove(self, thing: T) -> None:
        """Removing twice is allowed."""
        self._places.pop(thing, None)

    def first(self) -> tuple[float, T] | None:
        """The least number and its thing; None without any."""
        while self._entries and not self._current(self._entries[0]):
            heapq.heappop(self._entries)
        if not self._entries:
            return None
        number, _, thing = self._entries[0]
        return number, thing

    def _current(self, entry: tuple[float, int, T]) -> bool:
        return self._places.get(entry[2]) == entry[1]
