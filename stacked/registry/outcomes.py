"""What experiments' units got: sums by phase, arm and unit, feedback, and which answer was whose.

A unit and an answer are stored as numbers that are made of their names (`number_of`), so that rows
are small and no name is stored. What a unit got is a sum for each metric: only the numbers of
answers, to which feedback comes, are as many as the answers, and they expire first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    case,
    cast,
    delete,
    func,
    select,
    update,
)

from stacked.errors import FeedbackInvalid, FeedbackUnknown
from stacked.experiments.assignment import Arm
from stacked.experiments.statistics import Sample
from stacked.registry.database import Database
from stacked.registry.schema import (
    experiment_answers,
    experiment_feedback,
    experiment_phases,
    experiment_units,
    experiment_values,
    total,
    upsert,
)

# SQLite's oldest bound on the variables of one statement, less a few.
_AT_ONCE = 900

BUILT_IN: Mapping[str, tuple[str, str]] = {
    "error": ("failed", "answers"),
    "seconds": ("seconds", "whole"),
    "first_seconds": ("first_seconds", "whole"),
    "output_tokens": ("output_tokens", "whole"),
    "length": ("cut", "whole"),
}
"""Metrics of every answer: a unit's sum, and of how many answers."""

SHARES = frozenset({"error", "length"})
"""Those of which each value is 0 or 1."""


class Tally(NamedTuple):
    """The sums of some answers to one unit. `whole`: those that were not cut off, nor failed."""

    answers: int = 0
    failed: int = 0
    whole: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    output_tokens: int = 0
    cut: int = 0
    """Ended by the number of tokens."""

    def plus(self, other: Tally) -> Tally:
        return Tally._make(mine + more for mine, more in zip(self, other, strict=True))


class Got(NamedTuple):
    """What one unit got since the last batch."""

    phase: tuple[str, str]
    arm: str
    tally: Tally


@dataclass(slots=True)
class Batch:
    """What is to be written: by number of the unit, and of which unit an answer is."""

    phases: dict[tuple[str, str], tuple[Arm, ...]] = field(default_factory=dict)
    """Experiment and phase -> its arms."""
    units: dict[int, Got] = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)
    drawn: dict[tuple[str, str], int] = field(default_factory=dict)
    """Answers to requests without a unit, whose arm was drawn by chance."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of an experiment, and what it has of each arm, in the order of its arms."""

    seq: int
    experiment: str
    phase: str
    began: datetime
    last: datetime
    arms: tuple[Arm, ...]
    units: tuple[int, ...]
    answers: tuple[int, ...]
    drawn: int
    dropped: int
    """Units beyond the most that are stored."""
    metrics: Mapping[str, bool]
    """Those of its feedback, and whether each value is 0 or 1."""

    @classmethod
    def empty(cls, experiment: str, phase: str, arms: Sequence[Arm], now: datetime) -> Phase:
        """One that has no answers yet."""
        none = (0,) * len(arms)
        return cls(0, experiment, phase, now, now, tuple(arms), none, none, 0, 0, {})

    @property
    def units_per_second(self) -> float | None:
        """At what rate new units came; None if that cannot be said."""
        seconds = (self.last - self.began).total_seconds()
        return sum(self.units) / seconds if seconds and any(self.units) else None


May = Callable[[str], bool]
"""Whether somebody may use an experiment's key."""


class Value(NamedTuple):
    """A value of feedback for an answer, by its number.

    With a `unit`, it is for that unit rather than for an answer, and `answer` stands for it.
    """

    answer: int
    metric: str
    value: float
    unit: int | None = None


class Recorded(NamedTuple):
    """For which experiment a value was stored, and whether in place of another one."""

    experiment: str
    replaced: bool


def number_of(*names: str) -> int:
    """A number of 63 bits that stands for a name; hardly ever the same for two."""
    made = hashlib.blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(made.digest()) >> 1


class OutcomeRepository:
    """The outcomes of all experiments. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: Batch, now: datetime, most_units: int) -> int:
        """Add a batch; how many new units were left out, as their phase has `most_units`."""
        with self._database.write() as connection:
            phases = {
                names: _phase(connection, names, arms, batch.drawn.get(names, 0), now)
                for names, arms in batch.phases.items()
            }
            left_out = _left_out(connection, batch, phases, most_units)
            _add_units(connection, batch, phases, left_out)
            rows = [
                {"id": answer, "unit": unit, "hour": _hour(now)}
                for answer, unit in batch.answers.items()
                if unit not in left_out
            ]
            if rows:  # of two answers with one id, which only their client can make, the first
                connection.execute(upsert(connection, experiment_answers, ("id",)), rows)
        return len(left_out)

    def record(
        self,
        values: Sequence[tuple[Value, May]],
        *,
        most_metrics: int,
        now: datetime,
    ) -> list[Recorded | FeedbackUnknown | FeedbackInvalid]:
        """Store values, each in place of an earlier one of its answer and metric.

        What is refused changes nothing: FeedbackUnknown, also where its sender may not use the
        experiment, and FeedbackInvalid for one metric more than `most_metrics`.
        """
        found: list[Recorded | FeedbackUnknown | FeedbackInvalid] = []
        with self._database.write() as connection:
            for each, may in values:
                try:
                    found.append(_record(connection, each, may, most_metrics, now))
                except (FeedbackUnknown, FeedbackInvalid) as error:
                    found.append(error)
        return found

    def phases(self, experiment: str | None = None) -> list[Phase]:
        """Of one experiment or of all, the one with the newest answer first."""
        columns = experiment_phases.c
        query = select(experiment_phases).order_by(columns.last.desc(), columns.seq.desc())
        if experiment is not None:
            query = query.where(columns.experiment == experiment)
        units = experiment_units.c
        counts = select(units.phase, units.arm, func.count(), total(units.answers)).group_by(
            units.phase, units.arm
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            wanted = [row.seq for row in rows]
            counted = {
                (phase, arm): (number, int(answers))
                for some in _some(wanted)
                for phase, arm, number, answers in connection.execute(
                    counts.where(units.phase.in_(some))
                )
            }
        return [_read(row, counted) for row in rows]

    def samples(self, phase: Phase) -> dict[str, list[Sample]]:
        """By metric, what the units of each arm have, in the order of the arms."""
        found: dict[tuple[str, str], Sample] = {}
        with self._database.read() as connection:
            for arm, *sums in connection.execute(_built_in(phase.seq)):
                for at, name in enumerate(BUILT_IN):
                    found[name, arm] = _sample(sums[3 * at : 3 * at + 3])
            for arm, metric, *sums in connection.execute(_of_feedback(phase.seq)):
                found[metric, arm] = _sample(sums)
        none = Sample(0, 0.0, 0.0)
        return {
            name: [found.get((name, arm.key), none) for arm in phase.arms]
            for name in (*phase.metrics, *BUILT_IN)
        }

    def forget(self, answers_before: datetime, phases_before: datetime, most_answers: int) -> int:
        """Delete what is older, and the oldest answers beyond the most; how many those were."""
        answers = experiment_answers.c
        with self._database.write() as connection:
            connection.execute(
                delete(experiment_phases).where(experiment_phases.c.last < phases_before)
            )
            connection.execute(
                delete(experiment_answers).where(answers.hour < _hour(answers_before))
            )
            newest = select(answers.hour).order_by(answers.hour.desc())
            oldest = connection.execute(newest.offset(most_answers).limit(1)).scalar_one_or_none()
            if oldest is None:
                return 0
            gone = connection.execute(delete(experiment_answers).where(answers.hour <= oldest))
            return gone.rowcount


def _hour(time: datetime) -> int:
    return int(time.timestamp()) // 3600


def _phase(
    connection: Connection,
    names: tuple[str, str],
    arms: Sequence[Arm],
    drawn: int,
    now: datetime,
) -> int:
    """The number of a phase that has answers now."""
    experiment, phase = names
    keys = ("experiment", "phase")
    new = upsert(connection, experiment_phases, keys, put=("last",), add=("drawn",)).values(
        experiment=experiment,
        phase=phase,
        began=now,
        last=now,
        arms=[arm._asdict() for arm in arms],
        drawn=drawn,
        dropped=0,
        metrics={},
    )
    return int(connection.execute(new.returning(experiment_phases.c.seq)).scalar_one())


def _left_out(
    connection: Connection, batch: Batch, phases: Mapping[tuple[str, str], int], most: int
) -> set[int]:
    """The new units of the batch that their phase has no room for."""
    units = experiment_units.c
    known = {
        id
        for some in _some([*batch.units])
        for id in connection.execute(select(units.id).where(units.id.in_(some))).scalars()
    }
    left_out: set[int] = set()
    for names, seq in phases.items():
        new = [id for id, got in batch.units.items() if got.phase == names and id not in known]
        if not new:
            continue
        there = connection.execute(
            select(func.count()).select_from(experiment_units).where(units.phase == seq)
        ).scalar_one()
        beyond = new[max(0, most - there) :]
        if beyond:
            columns = experiment_phases.c
            connection.execute(
                update(experiment_phases)
                .where(columns.seq == seq)
                .values(dropped=columns.dropped + len(beyond))
            )
            left_out.update(beyond)
    return left_out


def _add_units(
    connection: Connection,
    batch: Batch,
    phases: Mapping[tuple[str, str], int],
    left_out: set[int],
) -> None:
    rows = [
        {"id": id, "phase": phases[got.phase], "arm": got.arm, **got.tally._asdict()}
        for id, got in batch.units.items()
        if id not in left_out
    ]
    if rows:
        new = upsert(connection, experiment_units, ("id",), add=Tally._fields)
        connection.execute(new, rows)


def _record(
    connection: Connection,
    given: Value,
    may: May,
    most_metrics: int,
    now: datetime,
) -> Recorded:
    if given.metric in BUILT_IN:
        raise FeedbackInvalid(f"{given.metric!r} is measured by the server; use another name")
    if given.unit is not None:
        _stand_in(connection, given.answer, given.unit, now)
    found = connection.execute(_unit_of(given.answer)).one_or_none()
    if found is None or not may(found.experiment):
        raise FeedbackUnknown(
            "no answer or unit of an experiment is known by this: it is of another server, too "
            "old, or its request had no unit; send the answer's opc-request-id"
        )
    _name_metric(connection, found, given, most_metrics)
    columns = experiment_feedback.c
    mine = (columns.answer == given.answer, columns.metric == given.metric)
    old = connection.execute(select(columns.value).where(*mine)).scalar_one_or_none()
    place = {"answer": given.answer, "metric": given.metric}
    new = upsert(connection, experiment_feedback, [*place], put=("value",))
    connection.execute(new.values(**place, value=given.value))
    of_unit = {"unit": found.unit, "metric": given.metric}
    more = upsert(connection, experiment_values, [*of_unit], add=("count", "total"))
    changed = given.value - (old or 0.0)
    connection.execute(more.values(**of_unit, count=int(old is None), total=changed))
    return Recorded(found.experiment, old is not None)


def _stand_in(connection: Connection, answer: int, unit: int, now: datetime) -> None:
    """Have an answer that was never given stand for its unit."""
    there = select(experiment_units.c.id).where(experiment_units.c.id == unit)
    if connection.execute(there).one_or_none() is not None:
        row = {"id": answer, "unit": unit, "hour": _hour(now)}
        connection.execute(upsert(connection, experiment_answers, ("id",)).values(row))


def _name_metric(connection: Connection, found: Row[Any], given: Value, most: int) -> None:
    """Have the phase name the metric. Raises FeedbackInvalid for one too many."""
    named, metric, is_share = found.metrics, given.metric, given.value in (0.0, 1.0)
    if named.get(metric) in (False, is_share):
        return
    if metric not in named and len(named) >= most:
        raise FeedbackInvalid(
            f"experiment {found.experiment!r} has {most} metrics already, and {metric!r} is none "
            "of them; more need experiments.metrics in the server's file"
        )
    connection.execute(
        update(experiment_phases)
        .where(experiment_phases.c.seq == found.seq)
        .values(metrics={**named, metric: is_share and named.get(metric, True)})
    )


def _read(row: Row[Any], counted: Mapping[tuple[int, str], tuple[int, int]]) -> Phase:
    arms = tuple(Arm(**each) for each in row.arms)
    of_arms = [counted.get((row.seq, arm.key), (0, 0)) for arm in arms]
    return Phase(
        seq=row.seq,
        experiment=row.experiment,
        phase=row.phase,
        began=row.began,
        last=row.last,
        arms=arms,
        units=tuple(units for units, _ in of_arms),
        answers=tuple(answers for _, answers in of_arms),
        drawn=row.drawn,
        dropped=row.dropped,
        metrics=row.metrics,
    )


def _some(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """As many as one statement can name, again and again."""
    return (ids[at : at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE))


def _unit_of(answer: int) -> Select[Any]:
    """The unit of an answer, its phase and experiment."""
    units, phases = experiment_units, experiment_phases
    named = (phases.c.seq, phases.c.experiment, phases.c.metrics, units.c.id.label("unit"))
    return (
        select(*named)
        .join_from(experiment_answers, units, experiment_answers.c.unit == units.c.id)
        .join(phases, units.c.phase == phases.c.seq)
        .where(experiment_answers.c.id == answer)
    )


def _built_in(phase: int) -> Select[Any]:
    """By arm, the sums of each metric of `BUILT_IN`."""
    units = experiment_units.c
    sums = [each for of, count in BUILT_IN.values() for each in _means(units[of], units[count])]
    return select(units.arm, *sums).where(units.phase == phase).group_by(units.arm)


def _of_feedback(phase: int) -> Select[Any]:
    """By arm and metric of feedback, its sums."""
    units, values = experiment_units.c, experiment_values.c
    return (
        select(units.arm, values.metric, *_means(values.total, values.count))
        .join_from(experiment_values, experiment_units, values.unit == units.id)
        .where(units.phase == phase)
        .group_by(units.arm, values.metric)
    )


def _means(total: ColumnElement[Any], count: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    """Of units that have a mean: how many, the sum of the means, and of their squares."""
    mean = case((count > 0, cast(total, Float) / count))
    return [func.count(mean), func.sum(mean), func.sum(mean * mean)]


def _sample(sums: Sequence[Any]) -> Sample:
    count, total, squares = (each or 0 for each in sums)
    mean = total / count if count else 0.0
    return Sample(count, mean, max(0.0, squares - count * mean**2) / max(count - 1, 1))
