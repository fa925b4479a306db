"""The bounds are those of the published method, and hold at every look in simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest

from stacked.experiments.statistics import (
    ALPHA,
    LEAST_UNITS,
    MISMATCH,
    Sample,
    difference,
    mean_of,
    mismatch,
    steadied,
    units_needed,
)
from tests.experiments.simulated import ALIKE, binary, bounds, normal, simulate

# By gbstats 0.8.0, GrowthBook's own package: `SequentialTwoSidedTTest` with
# `sequential_tuning_parameter=1000`. It needs numpy 1, so it cannot be installed next to vLLM.
GBSTATS = [
    (Sample(400, 0.5, 0.25), Sample(600, 0.6, 0.24), 0.05, 0.0028258987402386, 0.1971741012597613),
    (Sample(30, 1.5, 4.0), Sample(25, 0.2, 1.0), 0.05, -3.2037850521940694, 0.6037850521940693),
    (Sample(5000, 10, 25), Sample(20000, 10.2, 30), 0.025, -0.0896424290344334, 0.489642429034432),
    (Sample(100, 0.02, 0.0196), Sample(100, 0.08, 0.0736), 0.01, -0.0579116485705, 0.1779116485705),
]
# By savvi 0.3.1: `1 / Multinomial(alpha, shares).odds`.
SAVVI = [
    ((500, 600), (1, 1), 0.053384012419379574),
    ((5000, 5300), (50, 50), 0.13489369839406692),
    ((50, 50, 100), (0.25, 0.25, 0.5), 1.0),
    ((100, 160, 90), (1, 1, 1), 0.00043564872744748605),
]


@pytest.mark.parametrize(("control", "arm", "alpha", "low", "high"), GBSTATS)
def test_bounds_are_those_of_growthbook(
    control: Sample, arm: Sample, alpha: float, low: float, high: float
) -> None:
    found = difference(control, arm, alpha)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-11)


@pytest.mark.parametrize(("units", "weights", "p"), SAVVI)
def test_numbers_of_units_are_compared_as_by_savvi(
    units: tuple[int, ...], weights: tuple[float, ...], p: float
) -> None:
    assert mismatch(units, weights) == pytest.approx(p)


def test_units_in_an_arm_without_weight_contradict_it() -> None:
    assert mismatch([10, 1], [1, 0]) == 0.0
    assert mismatch([10, 0], [1, 0]) == 1.0
    assert mismatch([0, 0], [1, 1]) == 1.0


def test_few_units_have_no_bounds() -> None:
    few, enough = Sample(LEAST_UNITS - 1, 0, 1), Sample(LEAST_UNITS, 0, 1)
    assert difference(enough, few) is None
    assert difference(few, enough) is None
    assert mean_of(few) is None
    assert mean_of(enough) is not None


def test_the_units_that_are_needed_just_suffice() -> None:
    control, arm = Sample(100, 0.5, 0.25), Sample(300, 0.55, 0.24)
    needed = units_needed(control, arm)
    assert needed is not None
    for units, decided in ((needed, True), (needed - 4, False)):
        parts = (s._replace(units=units * share) for s, share in ((control, 0.25), (arm, 0.75)))
        found = difference(*parts)
        assert found is not None
        assert found.excludes_zero is decided
    assert units_needed(control, control) is None
    assert units_needed(control, control._replace(mean=0.5 + 1e-7)) is None


def test_a_small_arm_has_the_variance_of_all_and_a_large_one_its_own() -> None:
    control, arm = Sample(225, 0.05, 0.0477), Sample(25, 0.0, 0.0)
    steady, small = steadied([control, arm])
    assert 0.03 < small.variance < 0.05
    assert steady.variance == pytest.approx(control.variance, rel=0.05)
    large = [Sample(10**6, 0.5, 0.25), Sample(10**6, 0.4, 0.24)]
    assert [s.variance for s in steadied(large)] == pytest.approx([0.25, 0.24], rel=1e-3)
    assert steadied([Sample(0, 0, 0), Sample(1, 1, 0)])[1].variance == 0
    never = steadied([Sample(100, 0.0, 0.0)] * 2, share=True)[0]
    assert 0 < never.variance < 1 / 100, "none of 200 failed, and the next one may"


def test_the_simulation_computes_what_the_module_does() -> None:
    random = np.random.default_rng(1)
    units = random.integers(2, 3000, (2, 200)).astype(float)
    values = [[random.normal(1, 2, int(n)) for n in row] for row in units]
    total = np.array([[v.sum() for v in row] for row in values])
    squares = np.array([[(v**2).sum() for v in row] for row in values])
    estimates, halves = bounds(units, total, squares)
    for run, (estimate, half) in enumerate(zip(estimates, halves, strict=True)):
        arms = [
            Sample(len(row[run]), float(row[run].mean()), float(row[run].var(ddof=1)))
            for row in values
        ]
        found = difference(*steadied(arms))
        if found is None:
            assert half == np.inf
        else:
            assert (found.value, found.high) == pytest.approx((estimate, estimate + half))


@pytest.mark.parametrize("name", ["correct in half of the answers", "correct in 5 %, shares 90/10"])
def test_arms_that_do_not_differ_are_seldom_said_to_however_often_one_looks(name: str) -> None:
    draw, share, returning = ALIKE[name]
    looks = simulate(draw, 1000, share=share, returning=returning)
    assert len(looks.decided) == 2000
    assert looks.decided.mean() <= ALPHA


@pytest.mark.long
@pytest.mark.parametrize("name", ALIKE)
def test_arms_that_do_not_differ_in_long_experiments(name: str) -> None:
    draw, share, returning = ALIKE[name]
    looks = simulate(draw, 10_000, share=share, returning=returning)
    assert looks.decided.mean() <= ALPHA


@pytest.mark.parametrize(
    ("draw", "effect"), [(binary(0.5, 0.3), 0.3), (normal(0.5), 0.5)], ids=["binary", "normal"]
)
def test_a_known_effect_is_found_and_is_within_the_bounds(draw: object, effect: float) -> None:
    looks = simulate(draw, 600, effect=effect, runs=500)  # type: ignore[arg-type]
    assert looks.missed.mean() <= ALPHA
    assert looks.decided.mean() >= 0.95


def test_right_shares_are_seldom_doubted_and_wrong_ones_are_found() -> None:
    random = np.random.default_rng(3)
    doubted = found = 0
    for _ in range(300):
        fair, off = ((random.random(1500) < share).cumsum() for share in (0.5, 0.6))
        for arm, is_fair in ((fair, True), (off, False)):
            looks = [
                mismatch([n + 1 - int(arm[n]), int(arm[n])], [1, 1]) for n in range(0, 1500, 25)
            ]
            alarm = min(looks) < MISMATCH
            doubted, found = doubted + (alarm and is_fair), found + (alarm and not is_fair)
    assert doubted <= 2
    assert found >= 290
