"""A part of the requests is chosen: the right one over any stretch, whatever their pattern is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.experiments.sampling import Portion


@given(
    percent=st.floats(min_value=0.01, max_value=100),
    start=st.floats(min_value=0, max_value=1, exclude_max=True),
    skipped=st.integers(0, 500),
    count=st.integers(1, 3000),
)
def test_any_stretch_has_its_part_but_for_a_few(
    percent: float, start: float, skipped: int, count: int
) -> None:
    chosen = Portion(percent, start)
    for _ in range(skipped):
        chosen()
    got = sum(chosen() for _ in range(count))
    assert abs(got - count * percent / 100) < 4


@pytest.mark.parametrize("clients", range(2, 30))
def test_clients_that_take_turns_are_chosen_alike(clients: int) -> None:
    chosen = Portion(20)
    took = [0] * clients
    for at in range(1000 * clients):
        took[at % clients] += chosen()
    assert 180 <= min(took) <= max(took) <= 220, "by chance it would be 160 to 240"


def test_all_are_chosen_at_a_hundred_percent() -> None:
    chosen = Portion(100)
    assert all(chosen() for _ in range(10_000))
