"""Bounds of means and differences: what must hold for all scores, and coverage by simulation."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.experiments.paired import _student, difference, mean_of

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(SCORES)
def test_the_same_answers_differ_by_nothing(scores: list[float]) -> None:
    assert difference(scores, scores) == (0, 0, 0)


@given(SCORES, st.data())
def test_a_better_score_lowers_no_bound(scores: list[float], data: st.DataObject) -> None:
    served = data.draw(st.lists(st.floats(0, 1), min_size=len(scores), max_size=len(scores)))
    better = list(scores)
    at = data.draw(st.integers(0, len(scores) - 1))
    better[at] = data.draw(st.floats(scores[at], 1))
    before, after = difference(scores, served), difference(better, served)
    assert all(old <= new + 1e-12 for old, new in zip(before, after, strict=True))


@given(SCORES)
def test_a_mean_is_between_its_bounds(scores: list[float]) -> None:
    low, mean, high = mean_of(scores)
    assert 0 <= low <= mean + 1e-12 <= high + 2e-12 <= 1 + 3e-12


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    assert mean_of([1.0] * 81 + [0.0] * 182)[::2] == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert mean_of([0.0] * 20)[::2] == pytest.approx((0, 0.1611), abs=1e-4)


@pytest.mark.parametrize(
    ("confidence", "freedom", "quantile"),
    [(0.95, 9, 1.8331), (0.975, 19, 2.0930), (0.95, 99, 1.6604), (0.995, 29, 2.7564)],
)
def test_students_quantile_is_that_of_the_tables(
    confidence: float, freedom: int, quantile: float
) -> None:
    assert _student(confidence, freedom) == pytest.approx(quantile, abs=2e-3)


@pytest.mark.parametrize(
    ("count", "gain", "loss", "covered"),
    [
        (20, 0.2, 0.2, 0.93),
        (30, 0.3, 0.1, 0.91),
        (50, 0.05, 0.25, 0.93),
        (50, 0.02, 0.02, 0.93),
        (100, 0.1, 0.12, 0.93),
    ],
)
def test_a_bound_of_95_percent_holds_as_often(
    count: int, gain: float, loss: float, covered: float
) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        drawn = rng.choice([1.0, -1.0, 0.0], size=count, p=[gain, loss, 1 - gain - loss]).tolist()
        held += difference(drawn, [0.0] * count).low <= gain - loss
    assert held / 600 >= covered


def test_log_probabilities_have_bounds_too() -> None:
    rng = random.Random(3)
    values = [-rng.expovariate(1.0) for _ in range(40)]
    low, mean, high = mean_of(values)
    assert low < mean < high < 0
