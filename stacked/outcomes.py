"""What experiments' units got, as `flushing.py` counts, and feedback, which is durable at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from stacked import metrics
from stacked.config import ExperimentsConfig
from stacked.errors import FeedbackInvalid, FeedbackUnknown
from stacked.experiments.assignment import Arm, Exposure
from stacked.flushing import FLUSH_SECONDS, Flushing
from stacked.registry.outcomes import (
    Batch,
    Got,
    May,
    OutcomeRepository,
    Recorded,
    Tally,
    Value,
    number_of,
)
from stacked.registry.records import now

_HOUR = 3600.0
# Answers in memory while they cannot be written: about 30 MB.
MOST_PENDING = 100_000

# What vLLM puts before a request's id, to make that of an answer.
_MADE = re.compile(r"^(chatcmpl|cmpl)-")

# Values of one transaction, which others wait for; and at most one request's more.
_MOST_AT_ONCE = 500

Found = Recorded | FeedbackUnknown | FeedbackInvalid

Arms = Callable[[str], Sequence[Arm]]
"""The arms of an experiment as they are served, by its key."""


class Outcomes(Flushing[Batch]):
    """Those of this process. `begin`, use, `await close()`; all on one event loop."""

    def __init__(self, settings: ExperimentsConfig, arms: Arms) -> None:
        super().__init__("outcomes")
        self._settings = settings
        self._arms = arms
        self._records: OutcomeRepository | None = None
        self._shared = False
        self.pending = Batch()
        self._phases: dict[tuple[str, str], tuple[Arm, ...]] = {}
        self._tidied: float | None = None
        self._asked: deque[tuple[list[tuple[Value, May]], asyncio.Future[list[Found]]]] = deque()
        self._recording: asyncio.Task[None] | None = None

    def begin(self, records: OutcomeRepository, *, shared: bool = False) -> None:
        """Write them to these records from now on; `shared`: other servers do so too."""
        self._records, self._shared = records, shared
        self._begin()

    def saw(self, exposure: Exposure) -> None:
        """A request got this arm; while what it is part of is served."""
        names = exposure.experiment, exposure.phase
        if names not in self._phases:
            self._phases[names] = tuple(self._arms(exposure.experiment))

    def add(self, id: str, exposure: Exposure, tally: Tally) -> None:
        """The answer to a request that had this id."""
        metrics.exposed(exposure.experiment, exposure.arm)
        names = exposure.experiment, exposure.phase
        batch = self.pending
        if len(batch.answers) >= MOST_PENDING or self._records is None:
            metrics.outcomes_dropped("unwritten")
            return
        batch.phases[names] = self._phases[names]
        if exposure.unit is None:
            batch.drawn[names] = batch.drawn.get(names, 0) + 1
            return
        unit = _unit(exposure)
        batch.answers[_answer(id)] = unit
        before = batch.units.get(unit)
        tally = before.tally.plus(tally) if before is not None else tally
        batch.units[unit] = Got(names, exposure.arm, tally)

    async def record(self, values: Sequence[Value], may: May) -> list[Found]:
        """Store values durably. `may`: whether the caller may use an experiment's key.

        Returns why where one is refused. Raises RegistryUnusable.
        """
        found = await self._together(values, may)
        if self._shared and any(isinstance(each, FeedbackUnknown) for each in found):
            # Another server may have answered, and have written that by then.
            await asyncio.sleep(FLUSH_SECONDS + 1.0)
            found = await self._together(values, may)
        for each in found:
            if isinstance(each, Recorded):
                metrics.feedback(each.experiment)
        return found

    async def _together(self, values: Sequence[Value], may: May) -> list[Found]:
        """Stored in one transaction with what others record meanwhile, as each takes long."""
        done: asyncio.Future[list[Found]] = asyncio.get_running_loop().create_future()
        self._asked.append(([(value, may) for value in values], done))
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record_all())
        return await done

    async def _record_all(self) -> None:
        while self._asked:
            some = [self._asked.popleft()]
            while self._asked and sum(len(values) for values, _ in some) < _MOST_AT_ONCE:
                some.append(self._asked.popleft())
            try:
                found = iter(await self._stored([each for values, _ in some for each in values]))
            except Exception as error:  # noqa: BLE001  whatever it is, each is told
                for _, done in some:
                    if not done.done():
                        done.set_exception(error)
                continue
            for values, done in some:
                mine = [*islice(found, len(values))]
                if not done.done():  # its client may have left
                    done.set_result(mine)

    async def _stored(self, values: Sequence[tuple[Value, May]]) -> list[Found]:
        pending = self.pending
        fresh = any(v.answer in pending.answers or v.unit in pending.units for v, _ in values)
        if fresh or self.is_writing:  # what it is for may be a second old
            await self.flush()
        assert self._records is not None
        most = self._settings.metrics
        return await asyncio.to_thread(self._records.record, values, most_metrics=most, now=now())

    def _take(self) -> Batch | None:
        taken, self.pending = self.pending, Batch()
        return taken if taken.phases else None

    def _put_back(self, taken: Batch) -> None:
        for unit, got in self.pending.units.items():
            before = taken.units.get(unit)
            taken.units[unit] = (
                got if before is None else got._replace(tally=before.tally.plus(got.tally))
            )
        for names, count in self.pending.drawn.items():
            taken.drawn[names] = taken.drawn.get(names, 0) + count
        taken.phases |= self.pending.phases
        taken.answers |= self.pending.answers
        self.pending = taken

    def _write(self, taken: Batch) -> None:
        assert self._records is not None
        settings, at = self._settings, now()
        if self._tidied is None or time.monotonic() - self._tidied >= _HOUR:
            gone = self._records.forget(
                at - settings.feedback, at - settings.results, settings.answers
            )
            metrics.outcomes_dropped("answers", gone)
            self._tidied = time.monotonic()
        left_out = self._records.add(taken, at, settings.units)  # last: it is not done twice
        metrics.outcomes_dropped("units", left_out)


def of_answer(id: str, metric: str, value: float) -> Value:
    """Feedback for an answer, by the id in it or that of its request."""
    return Value(_answer(id), metric, value)


def of_unit(exposure: Exposure, metric: str, value: float) -> Value:
    """Feedback for the unit of an exposure."""
    unit = _unit(exposure)
    return Value(number_of("unit", str(unit)), metric, value, unit)


def _answer(id: str) -> int:
    return number_of("answer", _MADE.sub("", id, count=1))


def _unit(exposure: Exposure) -> int:
    return number_of(exposure.experiment, exposure.phase, exposure.unit or "")
