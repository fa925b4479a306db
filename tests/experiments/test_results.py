"""What is said of an experiment follows from its values: better, worse, open, too early."""

from __future__ import annotations

import pytest

from stacked.experiments.results import Verdict, result_of, sentences, shown
from stacked.experiments.statistics import ALPHA, Sample, difference

ARMS = ["sql-v1", "sql-v2"]


def rate(units: int, mean: float) -> Sample:
    return Sample(units, mean, mean * (1 - mean))


LOW, HIGH = rate(500, 0.5), rate(500, 0.8)


def verdict(metric: str, *samples: Sample, lower: bool = False) -> Verdict | None:
    arms = [f"arm {n}" for n in range(len(samples))]
    return result_of(metric, arms, samples, share=True, lower=lower).arms[-1].verdict


@pytest.mark.parametrize(
    ("metric", "lower", "expected"),
    [
        ("correct", False, Verdict.BETTER),
        ("edits", True, Verdict.WORSE),
        ("error", False, Verdict.WORSE),
        ("seconds", False, Verdict.WORSE),
        ("length", False, Verdict.WORSE),
        ("output_tokens", False, Verdict.DIFFERENT),
    ],
)
def test_more_is_better_unless_it_is_known_not_to_be(
    metric: str, lower: bool, expected: Verdict
) -> None:
    assert verdict(metric, LOW, HIGH, lower=lower) is expected


def test_few_units_and_small_differences_are_no_result() -> None:
    assert verdict("correct", rate(24, 0.1), rate(500, 0.9)) is Verdict.FEW
    assert verdict("correct", rate(500, 0.80), rate(500, 0.81)) is Verdict.OPEN


def test_each_of_several_arms_has_its_share_of_the_doubt() -> None:
    three = result_of("c", ["a", "b", "c"], [LOW, LOW, HIGH], share=True, lower=False)
    (control, same, better) = three.arms
    assert (control.verdict, same.verdict, better.verdict) == (None, Verdict.OPEN, Verdict.BETTER)
    two = result_of("c", ["a", "c"], [LOW, HIGH], share=True, lower=False).arms[1].difference
    halved = difference(LOW, HIGH, ALPHA / 2)
    assert better.difference is not None
    assert two is not None
    assert halved is not None
    assert better.difference.high - better.difference.low > two.high - two.low
    assert better.difference.high == pytest.approx(halved.high, rel=0.05)


def test_a_result_says_which_is_better_by_how_much_and_how_sure() -> None:
    result = result_of("correct", ARMS, [LOW, HIGH], share=True, lower=False)
    found = result.arms[1].difference
    assert found is not None
    (said,) = sentences(result, None)
    assert said == (
        f"sql-v2 is better than sql-v1: 'correct' is 30.0 points higher (80.0% against 50.0%), "
        f"by at least {found.low * 100:.1f} points and at most {found.high * 100:.1f} points; "
        "95% sure, however often you look."
    )
    worse = result_of(
        "seconds", ARMS, [Sample(900, 2.0, 1), Sample(900, 2.5, 1)], share=False, lower=False
    )
    assert sentences(worse, None)[0].startswith(
        "sql-v2 is worse than sql-v1: 'seconds' is 0.5 higher (2.5 against 2)"
    )


def test_an_open_result_says_how_much_longer_it_takes() -> None:
    result = result_of("correct", ARMS, [rate(200, 0.5), rate(200, 0.6)], share=True, lower=False)
    needed = result.arms[1].units_needed
    assert needed is not None
    (said,) = sentences(result, 0.1)
    more = needed - 400
    assert f"about {more:,} more units decide it, in about {more / 6:.0f} minutes" in said
    (said,) = sentences(result, None)
    assert said.endswith(f"about {more:,} more units decide it.")
    same = result_of("correct", ARMS, [rate(200, 0.5)] * 2, share=True, lower=False)
    assert "no number of units would decide it" in sentences(same, 0.1)[0]


def test_without_units_or_with_few_it_is_too_early() -> None:
    none = result_of("correct", ARMS, [Sample(0, 0, 0)] * 2, share=True, lower=False)
    assert sentences(none, None) == ["No unit has 'correct' yet."]
    few = result_of("correct", ARMS, [rate(30, 0.5), rate(7, 0.5)], share=True, lower=False)
    assert "sql-v2 has 7 units with 'correct', and 25 are the least" in sentences(few, None)[0]
    alone = result_of("correct", ARMS[:1], [LOW], share=True, lower=False)
    assert "the only arm" in sentences(alone, None)[0]


def test_values_are_shown_as_people_read_them() -> None:
    share = result_of("c", ARMS, [LOW, HIGH], share=True, lower=False)
    number = result_of("c", ARMS, [LOW, HIGH], share=False, lower=False)
    assert [shown(0.1234, share), shown(0.12345, number), shown(12345.6, number)] == [
        "12.3%",
        "0.123",
        "12,346",
    ]
    assert shown(None, share) == "-"
