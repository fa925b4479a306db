"""Which adapter each request of a run uses, and how many adapters the rows of a table have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stacked.errors import ParameterInvalid

ASSIGNMENTS = ("uniform", "zipf", "round-robin", "one-hot")

_ZIPF_EXPONENT = 1.1
_COUNTS = {"slots": (1, 0), "slots+1": (1, 1), "2xslots": (2, 0)}


@dataclass(frozen=True, slots=True)
class Row:
    """`adapters` different adapters, drawn by `assignment`; 0 uses only the base."""

    adapters: int
    assignment: str = "uniform"

    @property
    def name(self) -> str:
        if self.adapters == 0:
            return "base"
        if self.adapters == 1:
            return "1 adapter"
        return f"{self.adapters} adapters, {self.assignment}"


def assign(row: Row, requests: int, seed: int) -> list[int | None]:
    """The adapter's number of each request, None for the base; the same seed, the same list."""
    chance = random.Random(seed)
    if row.adapters == 0:
        return [None] * requests
    numbers = range(row.adapters)
    match row.assignment:
        case "uniform":
            return [chance.randrange(row.adapters) for _ in range(requests)]
        case "zipf":
            weights = [(number + 1) ** -_ZIPF_EXPONENT for number in numbers]
            return list(chance.choices(numbers, weights, k=requests))
        case "round-robin":
            return [at % row.adapters for at in range(requests)]
        case "one-hot":
            return [0] * requests
    raise ParameterInvalid(f"no assignment {row.assignment!r}; there are {', '.join(ASSIGNMENTS)}")


def rows_of(counts: str, assignments: str, slots: int, most: int) -> list[Row]:
    """Rows from `0,1,slots,slots+1,2xslots,64` and `uniform,zipf`, none above `most` adapters.

    One adapter, or none, needs only one assignment. Raises ParameterInvalid.
    """
    numbers = sorted({_count(word.strip(), slots) for word in counts.split(",")})
    ways = [way.strip() for way in assignments.split(",")]
    for way in ways:
        assign(Row(1, way), 1, 0)
    return [
        Row(number, way)
        for number in numbers
        if number <= most
        for way in (ways if number > 1 else ways[:1])
    ]


def most_adapters(rows: Sequence[Row]) -> int:
    """How many adapters the rows need."""
    return max((row.adapters for row in rows), default=0)


def _count(word: str, slots: int) -> int:
    if word in _COUNTS:
        times, more = _COUNTS[word]
        return times * slots + more
    if not word.isdigit():
        raise ParameterInvalid(
            f"{word!r} is not a number of adapters; use numbers and {', '.join(_COUNTS)}"
        )
    return int(word)
