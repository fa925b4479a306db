"""Which answers agree, and what many comparisons add up to."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.experiments.comparison import (
    Answered,
    Mean,
    Part,
    Scores,
    Tally,
    as_json,
    same_text,
)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("SELECT 1", "SELECT 1", True),
        (" SELECT  1\n", "SELECT 1", True),
        ("SELECT 1", "select 1", False),
        ("e\u0301", "\u00e9", True),
        ("<think>so</think>yes", "<think>thus</think> yes", True),
        ("yes", "<think>thus</think> yes", True),
        ("yes", "no", False),
        ("", " ", True),
    ],
)
def test_texts_are_the_same_to_a_reader(one: str, other: str, same: bool) -> None:
    assert same_text(one, other) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2.0], "a": 1e0}'),
        ('```json\n{"a": 1}\n```', '{"a":1}'),
        ('<think>{"a": 2}</think>{"a": 1}', ' {"a": 1} '),
    ],
)
def test_json_is_equal_whatever_it_is_written_like(one: str, other: str) -> None:
    assert as_json(one) == as_json(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1}', '{"a": true}'),
        ("[1]", '["1"]'),
    ],
)
def test_other_json_is_not_equal(one: str, other: str) -> None:
    assert as_json(one) != as_json(other)


@pytest.mark.parametrize(
    "text",
    ["", "yes", "1", '"a"', "null", "{", "[" * 100_000, "```\nx\n```"],
)
def test_what_is_no_json_of_a_structure_is_none(text: str) -> None:
    assert as_json(text) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_mean_and_variance_are_those_of_the_numbers(numbers: list[float]) -> None:
    mean = Mean()
    for number in numbers:
        mean.add(number)
    assert mean.count == len(numbers)
    assert mean.value == pytest.approx(statistics.mean(numbers), abs=1e-6)
    assert mean.variance == pytest.approx(statistics.variance(numbers), abs=1e-6)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Wilson's intervals as Newcombe gives them (Statistics in Medicine 17, 1998, table I).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_share_has_the_published_bounds(count: int, of: int, low: float, high: float) -> None:
    share = Part.among(count, of)
    assert share is not None
    assert (round(share.low, 4), round(share.high, 4)) == (low, high)


def test_share_of_nothing_is_none_and_of_all_ends_at_one() -> None:
    assert Part.among(0, 0) is None
    share = Part.among(7, 7)
    assert share is not None
    assert share.high == 1.0
    assert share.low < 0.75


def test_only_answers_without_chance_are_the_same_or_not() -> None:
    tally = Tally()
    one, json = Answered("a", 2, 0.5), Answered('{"a": 1}', 4, 1.5)
    other = Answered('{"a":1.0}', 6, 0.5)
    assert tally.add(one, one, None, greedy=True) == "same"
    assert tally.add(json, other, Scores(-1.0, -3.0), greedy=True) == "different"
    assert tally.add(one, other, Scores(-2.0, -2.0), greedy=False) == "sampled"
    assert (tally.copies, tally.greedy, tally.same) == (3, 2, 1)
    assert (tally.json, tally.json_same) == (1, 1)
    assert (tally.tokens.served.value, tally.tokens.shadow.value) == (
        pytest.approx(8 / 3),
        pytest.approx(14 / 3),
    )
    assert (tally.logprob.served.value, tally.logprob.shadow.value) == (-1.5, -2.5)
    assert (tally.logprob.difference.count, tally.logprob.difference.value) == (2, -1.0)


def test_difference_has_bounds_once_there_are_enough() -> None:
    tally = Tally()
    answer = Answered("a", 1, 0.1)
    for at in range(24):
        tally.add(answer, answer, Scores(-1.0, -0.5 - at % 2), greedy=True)
    assert tally.logprob.interval is None
    tally.add(answer, answer, Scores(-1.0, -1.0), greedy=True)
    interval = tally.logprob.interval
    assert interval is not None
    assert interval.low < 0 < interval.high
    assert interval.value == pytest.approx(0.0, abs=1e-9)
