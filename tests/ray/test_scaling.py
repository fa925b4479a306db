from __future__ import annotations

from types import SimpleNamespace

import pytest

from stacked.ray.scaling import FIRST_TOKEN, WAITING, Policy, needed


@pytest.mark.parametrize(
    ("now", "requests", "waiting", "first_token", "wanted"),
    [
        (3, 0, 0, 0.0, 0.0),  # nobody calls: Ray's bounds say how many stay
        (3, 64, 0, 0.2, 2.0),  # two have enough with these
        (2, 64, 32, 0.2, 4.0),  # half of them wait: twice as many would run all
        (2, 40, 8, 0.2, 2.5),
        (2, 8, 8, 0.2, 4.0),  # nothing runs yet: not more than twice as many at once
        (2, 8, 0, 3.0, 3.0),  # streams begin late
        (2, 8, 0, 60.0, 4.0),
        (4, 32, 0, 1.9, 1.0),  # early enough
    ],
)
def test_the_most_pressing_sign_counts(
    now: int, requests: int, waiting: int, first_token: float, wanted: float
) -> None:
    found = needed(now, requests, waiting, first_token, each=32, most_seconds=2.0)
    assert found == pytest.approx(wanted)


def test_without_a_bound_no_delay_is_too_long() -> None:
    assert needed(2, 32, 0, 99.0, each=32, most_seconds=None) == 1.0


def test_ray_is_answered_from_what_its_replicas_report() -> None:
    reported = {WAITING: {"a": 10.0, "b": 22.0}, FIRST_TOKEN: {"a": 0.5, "b": 3.0}}
    context = SimpleNamespace(
        current_num_replicas=2, total_num_requests=64, aggregated_metrics=reported
    )
    assert Policy(each=32, most_seconds=2.0)(context) == (4.0, {})
    context.aggregated_metrics = None  # none has reported yet
    assert Policy(each=32, most_seconds=2.0)(context) == (2.0, {})
