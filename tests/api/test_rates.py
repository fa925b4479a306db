"""Rates of callers: what the windows let through and promise, on a clock of the test's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.api.rates import Rates, Window
from stacked.callers import ANYONE, Allowance, Caller
from stacked.errors import TooManyRequests

BOB = Caller("bob", allowance=Allowance(requests_per_minute=3, tokens_per_minute=100))
EVE = Caller("eve", allowance=Allowance(requests_per_minute=3))


class Clock:
    now = 1_800_000_000.0  # on a whole minute

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the library sees."""
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def admitted(rates: Rates, caller: Caller) -> TooManyRequests | None:
    try:
        rates.admit(caller)
    except TooManyRequests as refused:
        return refused
    return None


def test_requests_pass_up_to_the_rate_and_again_when_the_answer_says(clock: Clock) -> None:
    rates = Rates()
    assert [admitted(rates, BOB) for _ in range(3)] == [None] * 3
    refused = admitted(rates, BOB)
    assert refused is not None
    assert (refused.limit, refused.retry_after) == ("requests_per_minute", 60)
    clock.now += refused.retry_after - 1
    assert admitted(rates, BOB) is not None
    clock.now += 1.01
    assert admitted(rates, BOB) is None


@pytest.mark.parametrize("jump", [-3600, -61, 61, 3600])
def test_a_clock_that_jumps_gives_at_most_one_fresh_minute(clock: Clock, jump: float) -> None:
    rates = Rates()
    for _ in range(4):
        admitted(rates, BOB)
    clock.now += jump
    passed = [admitted(rates, BOB) for _ in range(4)].count(None)
    assert passed <= 3
    clock.now += 180  # a minute that comes again counts what was used in it before
    assert admitted(rates, BOB) is None


def test_callers_do_not_use_each_others_rates_and_most_have_none(clock: Clock) -> None:
    rates = Rates()
    for _ in range(4):
        admitted(rates, BOB)
    assert admitted(rates, EVE) is None
    assert [admitted(rates, ANYONE) for _ in range(50)] == [None] * 50
    assert rates.headers(ANYONE) == {}
    assert not {key for key in rates._storage.storage if "anyone" in key}


def test_tokens_over_the_rate_are_charged_to_the_next_minute(clock: Clock) -> None:
    rates = Rates()
    rates.charge(BOB, 99)
    assert admitted(rates, BOB) is None
    rates.charge(BOB, 151)  # an answer that was longer than what was left
    refused = admitted(rates, BOB)
    assert refused is not None
    assert refused.limit == "tokens_per_minute"
    assert refused.retry_after == pytest.approx(60 + 60 * (1 - 100 / 250))
    clock.now += 61
    assert admitted(rates, BOB) is not None, "its overshoot still counts"
    clock.now += refused.retry_after - 60
    assert admitted(rates, BOB) is None


def test_a_refused_request_does_not_count(clock: Clock) -> None:
    rates = Rates()
    rates.charge(BOB, 500)
    for _ in range(10):
        assert admitted(rates, BOB) is not None
    assert rates.headers(BOB)["x-ratelimit-remaining-requests"] == "3"


def test_headers_are_openais(clock: Clock) -> None:
    rates = Rates()
    rates.admit(BOB)
    rates.charge(BOB, 30)
    clock.now += 29.5
    assert rates.headers(BOB) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "1m31s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "1m31s",
    }
    clock.now += 61
    assert rates.headers(BOB)["x-ratelimit-reset-tokens"] == "30s"
    clock.now += 29
    assert rates.headers(BOB)["x-ratelimit-reset-tokens"] == "500ms"
    clock.now += 1
    headers = rates.headers(BOB)
    assert headers["x-ratelimit-reset-tokens"] == "0ms"
    assert headers["x-ratelimit-remaining-tokens"] == "100"


def test_callers_who_left_take_no_memory(clock: Clock) -> None:
    rates = Rates()
    for number in range(500):
        caller = Caller(f"c{number}", allowance=BOB.allowance)
        rates.admit(caller)
        rates.charge(caller, 5)
    assert len(rates._storage.storage) == 1000
    clock.now += 121
    rates.admit(BOB)
    assert len(rates._storage.storage) == 1


@given(
    most=st.integers(1, 1000),
    before=st.integers(0, 3000),
    now=st.integers(0, 3000),
    ends=st.floats(0.1, 60),
)
def test_a_window_is_open_when_it_says_and_not_earlier(
    most: int, before: int, now: int, ends: float
) -> None:
    used: Callable[[float], float] = lambda after: (  # noqa: E731
        now + before * (ends - after) / 60
        if after < ends
        else now * max(0.0, 120 - (after - ends) - 60) / 60
    )
    opens = Window(most, before, now, ends).opens
    assert used(opens + 1e-3) < most + sys.float_info.epsilon
    if opens > 1e-3:
        assert used(opens - 1e-3) >= most - 1e-6
    else:
        assert Window(most, before, now, ends).left > 0 or opens == pytest.approx(0, abs=1e-3)
