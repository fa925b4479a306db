"""What follows from deaths of engines, by their causes and by what was in flight."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.config import SupervisionConfig
from stacked.core import Digest
from stacked.supervision.policy import Cause, Death, Decision, decide

RULES = SupervisionConfig(backoff=timedelta(seconds=2), longest_backoff=timedelta(seconds=10))
A, B, C = (Digest(f"sha256:{name * 64}") for name in "abc")


def died(*in_flight: Digest | None, cause: Cause = Cause.SIGNAL, served: float = 1.0) -> Death:
    return Death(served, cause, frozenset(in_flight))


def started(*loading: Digest) -> Death:
    """A start that ended while it loaded these."""
    return died(*loading, cause=Cause.START, served=0)


def test_waits_double_up_to_the_longest_and_the_last_one_gives_up() -> None:
    deaths = [died(None)] * RULES.deaths
    waits = [decide(deaths[:count], RULES).wait for count in range(1, RULES.deaths + 1)]
    assert waits == [2.0, 4.0, 8.0, 10.0, None]


def test_an_engine_that_served_for_long_begins_a_new_row() -> None:
    before = [died(None)] * 4
    assert decide([*before, died(None, served=601)], RULES) == Decision(2.0)
    assert decide([*before, died(None, served=599)], RULES) == Decision(None)


def test_starts_that_fail_before_they_load_count_and_blame_nobody() -> None:
    starts = [died(cause=Cause.START, served=0)] * 4
    assert decide([died(A), *starts], RULES) == Decision(None)


@pytest.mark.parametrize(
    ("deaths", "culprit"),
    [
        ([died(A)], None),
        ([died(A), died(A)], A),  # alone, twice
        ([died(A, None), died(A, None)], None),
        ([died(A, None), died(A, B), died(A, C)], A),  # common to three
        ([died(A, B), died(A, B), died(A, B)], None),  # either
        ([died(A, B), died(A, B), died(B, C)], B),
        ([died(A, B), died(None), died(A, B)], None),
        ([died(None), died(None), died(None)], None),  # the base cannot be left out
        ([died(A), died(B), died(A)], None),
        ([died(A), died(A, cause=Cause.OOM)], None),
        ([died(A), died(cause=Cause.START, served=0), died(A)], A),
        ([died(A), died(A, cause=Cause.HANG)], A),
        ([died(A), died(A, served=1000)], None),  # a new row
        ([started(A)], None),
        ([started(A), started(A)], A),  # loaded alone, twice
        ([started(A, B, C), started(A)], A),  # among others, then alone
        ([died(C), started(A, B), started(B)], B),
        ([started(A), started(A, B)], None),  # either, or what B is loaded with
        ([started(A, B), started(A, B)], None),
        ([started(A, B), started(A, B), started(A, C)], A),
        ([started(A), started(B)], None),
        ([started(A), started(), started(A)], A),  # one in between that says nothing
        ([died(A), started(A)], A),
        ([died(A, B), started(A)], None),
        ([died(A, B), died(None), started(A)], None),
    ],
)
def test_only_an_adapter_that_nothing_else_explains_is_blamed(
    deaths: list[Death], culprit: Digest | None
) -> None:
    assert decide(deaths, RULES).quarantine == culprit


def test_a_culprit_is_left_out_rather_than_everything_given_up() -> None:
    deaths = [died(B), died(None), died(A, B), died(A), died(A)]
    assert decide(deaths, RULES) == Decision(2.0, A)


in_flight = st.frozensets(st.sampled_from([A, B, C, None]))
any_death = st.builds(Death, st.floats(0, 2000), st.sampled_from(Cause), in_flight)


@given(st.lists(any_death, min_size=1, max_size=12))
def test_a_culprit_was_always_there_and_waits_are_bounded(deaths: list[Death]) -> None:
    decision = decide(deaths, RULES)
    if decision.quarantine is not None:
        assert all(decision.quarantine in death.in_flight for death in deaths[-1:])
    assert decision.wait is None or 2.0 <= decision.wait <= 10.0
    assert len(deaths) >= RULES.deaths or decision.wait is not None
