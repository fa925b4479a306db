"""Medians, ratios of neighbours, and turns."""

from __future__ import annotations

import pytest

from stacked.bench.figures import Spread, quantile, ratios, turn


def test_spread_is_median_least_and_most() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.least, spread.most, spread.count) == (2.5, 1.0, 10.0, 4)
    assert f"{spread:.1f}" == "2.5 (1.0 to 10.0)"
    assert spread.tree() == {"median": 2.5, "least": 1.0, "most": 10.0, "count": 4}


def test_one_measurement_has_no_spread_to_tell() -> None:
    assert f"{Spread.of([1.234]):.2f}" == "1.23"
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_ratios_are_of_neighbours_not_of_medians() -> None:
    # The machine became half as fast; each pair says the same all the same.
    assert ratios([12.0, 6.0], [10.0, 5.0]) == [1.2, 1.2]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


def test_who_goes_first_changes_from_turn_to_turn() -> None:
    order = [side for number in range(3) for side in turn(number, ("a", "b"))]
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_quantile_is_one_of_the_values() -> None:
    assert quantile([float(at) for at in range(1, 101)], 0.99) == 99.0
    assert quantile([3.0], 0.5) == 3.0
