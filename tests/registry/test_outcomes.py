"""Outcomes: summed by unit, joined by feedback once, there after a restart, and bounded."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacked.errors import FeedbackInvalid, FeedbackUnknown
from stacked.experiments.assignment import Arm
from stacked.experiments.statistics import Sample
from stacked.registry import Registry, Shared
from stacked.registry.outcomes import Batch, Got, Phase, Recorded, Tally, Value, number_of

NOW = datetime(2026, 1, 2, 10, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
SQL = ("sql", "one")
ARMS = (Arm("v1", 0.5, "sha256:1"), Arm("v2", 0.5, "sha256:2"))
GOOD = Tally(1, 0, 1, 2.0, 0.5, 10, 1)
FAILED = Tally(1, 1)


def batch(
    answers: Iterable[tuple[int, int, str, Tally]], names: tuple[str, str] = SQL, drawn: int = 0
) -> Batch:
    """Of answers: (answer, unit, arm, what it got)."""
    made = Batch(phases={names: ARMS}, drawn={names: drawn})
    for answer, unit, arm, tally in answers:
        before = made.units.get(unit)
        made.units[unit] = Got(names, arm, before.tally.plus(tally) if before else tally)
        made.answers[answer] = unit
    return made


def add(registry: Registry, *answers: tuple[int, int, str, Tally], now: datetime = NOW) -> int:
    return registry.outcomes.add(batch(answers), now, 1000)


def record(registry: Registry, *values: Value, may: bool = True, most: int = 20) -> list[object]:
    return [
        *registry.outcomes.record(
            [(value, lambda _: may) for value in values], most_metrics=most, now=NOW
        ),
    ]


def phase(registry: Registry) -> Phase:
    (found,) = registry.outcomes.phases()
    return found


def sample(registry: Registry, metric: str) -> list[Sample]:
    return registry.outcomes.samples(phase(registry))[metric]


def test_answers_are_summed_by_unit_and_survive_a_restart(where: Path | Shared) -> None:
    with Registry(where) as registry:
        add(registry, (1, 10, "v1", GOOD), (2, 10, "v1", FAILED), (3, 20, "v2", GOOD))
    with Registry(where) as registry:
        registry.outcomes.add(batch([(4, 30, "v2", GOOD._replace(seconds=4.0))], drawn=3), NOW, 9)
        found = phase(registry)
        assert (found.experiment, found.phase, found.arms) == (*SQL, ARMS)
        assert (found.units, found.answers, found.drawn) == ((1, 2), (2, 2), 3)
        assert (found.began, found.last) == (NOW, NOW)
        samples = registry.outcomes.samples(found)
    assert samples["seconds"] == [Sample(1, 2.0, 0.0), Sample(2, 3.0, 2.0)]
    assert samples["error"] == [Sample(1, 0.5, 0.0), Sample(2, 0.0, 0.0)]
    assert samples["output_tokens"] == [Sample(1, 10.0, 0.0), Sample(2, 10.0, 0.0)]
    assert samples["length"] == [Sample(1, 1.0, 0.0), Sample(2, 1.0, 0.0)]


def test_a_unit_counts_once_however_many_answers_it_has(registry: Registry) -> None:
    answers = [(n, 10, "v1", GOOD._replace(seconds=float(n))) for n in range(1, 101)]
    add(registry, *answers, (200, 20, "v1", GOOD._replace(seconds=1.5)))
    (of_arm, none) = sample(registry, "seconds")
    assert of_arm == Sample(2, (50.5 + 1.5) / 2, pytest.approx(49.0**2 / 2))
    assert none == Sample(0, 0.0, 0.0)


def test_feedback_joins_its_unit_and_replaces_what_came_before(registry: Registry) -> None:
    add(registry, (1, 10, "v1", GOOD), (2, 10, "v1", GOOD), (3, 20, "v2", GOOD))
    for _ in range(3):  # idempotent
        record(registry, Value(1, "correct", 1.0), Value(2, "correct", 0.0))
    assert record(registry, Value(3, "correct", 0.0)) == [Recorded("sql", False)]
    assert record(registry, Value(3, "correct", 1.0)) == [Recorded("sql", True)]
    assert sample(registry, "correct") == [Sample(1, 0.5, 0.0), Sample(1, 1.0, 0.0)]
    assert phase(registry).metrics == {"correct": True}
    record(registry, Value(3, "correct", 0.25))
    assert phase(registry).metrics == {"correct": False}


def test_feedback_for_a_unit_needs_an_answer_to_it(registry: Registry) -> None:
    add(registry, (1, 10, "v1", GOOD))
    mine, other = Value(500, "stars", 4.0, unit=10), Value(501, "stars", 4.0, unit=11)
    found = record(registry, mine, mine._replace(value=5.0), other)
    assert found[:2] == [Recorded("sql", False), Recorded("sql", True)]
    assert isinstance(found[2], FeedbackUnknown)
    assert sample(registry, "stars")[0] == Sample(1, 5.0, 0.0)


def test_feedback_that_is_not_allowed_is_as_unknown_as_any(registry: Registry) -> None:
    add(registry, (1, 10, "v1", GOOD))
    (hidden,) = record(registry, Value(1, "correct", 1.0), may=False)
    (unknown,) = record(registry, Value(7, "correct", 1.0))
    assert isinstance(hidden, FeedbackUnknown)
    assert str(hidden) == str(unknown)
    assert phase(registry).metrics == {}


def test_metrics_are_bounded_and_not_those_of_the_server(registry: Registry) -> None:
    add(registry, (1, 10, "v1", GOOD))
    values = [Value(1, name, 1.0) for name in ("a", "b", "c", "a", "seconds")]
    found = record(registry, *values, most=2)
    assert [type(each) for each in found] == [
        Recorded,
        Recorded,
        FeedbackInvalid,
        Recorded,
        FeedbackInvalid,
    ]
    assert [*phase(registry).metrics] == ["a", "b"]


def test_units_beyond_the_most_are_counted_and_left_out(registry: Registry) -> None:
    answers = [(n, n, "v1", GOOD) for n in range(5)]
    assert registry.outcomes.add(batch(answers), NOW, 3) == 2
    assert registry.outcomes.add(batch([*answers, (9, 0, "v1", GOOD)]), NOW, 3) == 2
    found = phase(registry)
    assert (found.units, found.answers, found.dropped) == ((3, 0), (7, 0), 4)
    assert isinstance(record(registry, Value(4, "a", 1.0))[0], FeedbackUnknown)
    assert isinstance(record(registry, Value(9, "a", 1.0))[0], Recorded)


def test_the_first_of_two_answers_with_one_id_is_the_one_that_feedback_is_for(
    registry: Registry,
) -> None:
    add(registry, (1, 10, "v1", GOOD))
    add(registry, (1, 20, "v2", GOOD))
    record(registry, Value(1, "correct", 1.0))
    assert [each.units for each in sample(registry, "correct")] == [1, 0]


def test_old_answers_are_forgotten_with_their_feedback_but_not_its_sums(
    registry: Registry,
) -> None:
    add(registry, (1, 10, "v1", GOOD), now=NOW - 3 * HOUR)
    record(registry, Value(1, "correct", 1.0))
    add(registry, (2, 20, "v2", GOOD))
    assert registry.outcomes.forget(NOW - HOUR, LONG_AGO, 1000) == 0
    assert isinstance(record(registry, Value(1, "correct", 0.0))[0], FeedbackUnknown)
    assert isinstance(record(registry, Value(2, "correct", 0.0))[0], Recorded)
    assert sample(registry, "correct") == [Sample(1, 1.0, 0.0), Sample(1, 0.0, 0.0)]


def test_the_oldest_answers_beyond_the_most_are_forgotten(registry: Registry) -> None:
    for ago in range(4):
        answers = [(10 * ago + n, n, "v1", GOOD) for n in range(3)]
        add(registry, *answers, now=NOW - ago * HOUR)
    assert registry.outcomes.forget(LONG_AGO, LONG_AGO, 7) == 6
    kinds = [type(record(registry, Value(10 * ago, "a", 1.0))[0]) for ago in range(4)]
    assert kinds == [Recorded, Recorded, FeedbackUnknown, FeedbackUnknown]


def test_a_phase_is_forgotten_with_all_that_is_about_it(registry: Registry) -> None:
    add(registry, (1, 10, "v1", GOOD), now=NOW - 3 * HOUR)
    record(registry, Value(1, "correct", 1.0))
    registry.outcomes.forget(LONG_AGO, NOW - HOUR, 1000)
    assert registry.outcomes.phases() == []
    assert isinstance(record(registry, Value(1, "correct", 1.0))[0], FeedbackUnknown)


def test_the_phase_with_the_newest_answer_comes_first(registry: Registry) -> None:
    for names, ago in ((("sql", "old"), 2), (("sql", "new"), 1), (("triage", "x"), 3)):
        answer = number_of(*names)
        made = batch([(answer, answer, "v1", GOOD)], names)
        registry.outcomes.add(made, NOW - ago * HOUR, 1000)
    registry.outcomes.add(batch([(1, 1, "v2", GOOD)], ("sql", "old")), NOW, 1000)
    found = [(each.experiment, each.phase) for each in registry.outcomes.phases()]
    assert found == [("sql", "old"), ("sql", "new"), ("triage", "x")]


def test_many_units_at_once(registry: Registry) -> None:
    answers = [(n, n, "v1" if n % 2 else "v2", GOOD) for n in range(5000)]
    for _ in range(2):
        assert registry.outcomes.add(batch(answers), NOW, 10_000) == 0
    assert phase(registry).units == (2500, 2500)
    assert sample(registry, "seconds") == [Sample(2500, 2.0, 0.0)] * 2
