"""Interleaved measurements: every row on every side, pairs seconds or one start apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TypeVar

from stacked.bench.figures import turn
from stacked.bench.report import Telling

S = TypeVar("S")
R = TypeVar("R")
M = TypeVar("M")

IDLE_SECONDS = 1.5
"""How long an engine that has just worked rests before another is measured.

vLLM's worker spins for a second after its last step, on the same core as every other's.
"""


@dataclass(frozen=True, slots=True)
class Rounds:
    """`starts` times each side is started, and `rounds` times measured in one start.

    `together`: all sides alive at once, one of them at work; otherwise one side alive at a time.
    """

    starts: int
    rounds: int
    together: bool

    def run(
        self,
        sides: Mapping[str, str],
        rows: Sequence[R],
        start: Callable[[str, int], AbstractContextManager[S]],
        measure: Callable[[S, str, R, int], M],
        tell: Telling,
    ) -> Iterator[M]:
        """Every measurement; `start` brings a side up, `measure` gets the number of the round.

        `sides` has the names of what is compared.
        """
        for nth in range(self.starts):
            order = turn(nth, list(sides))
            for alive in [order] if self.together else [[side] for side in order]:
                with ExitStack() as stack:
                    started: dict[str, S] = {}
                    for side in alive:
                        tell.begin(f"Start {nth + 1} of {self.starts}: {sides[side]}")
                        started[side] = stack.enter_context(start(side, nth))
                    tell.begin(f"Measuring {' and '.join(sides[side] for side in alive)}")
                    yield from self._one_start(nth, started, rows, measure, tell)

    def _one_start(
        self,
        nth: int,
        started: Mapping[str, S],
        rows: Sequence[R],
        measure: Callable[[S, str, R, int], M],
        tell: Telling,
    ) -> Iterator[M]:
        for side, served in started.items():  # the first measurement is slower than the others
            measure(served, side, rows[0], -1)
        for at in range(self.rounds):
            number = nth * self.rounds + at
            for place, row in enumerate(rows):
                for side in turn(number + place, list(started)):
                    if len(started) > 1:
                        time.sleep(IDLE_SECONDS)  # the other side comes to rest
                    yield measure(started[side], side, row, number)
                tell.fraction((at + (place + 1) / len(rows)) / self.rounds)
