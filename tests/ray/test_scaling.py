from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stacked.ray.scaling import FIRST_TOKEN, LEAST, MOST, SINCE, WAITING, Policy, needed, said


@pytest.mark.parametrize(
    ("now", "requests", "waiting", "first_token", "wanted"),
    [
        (3, 0, 0, 0.0, 0.0),  # nobody calls: the bounds say how many stay
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


class Cluster:
    """What Ray Serve says to a policy, and does with its answer."""

    def __init__(self, replicas: int, **settings: Any) -> None:
        given = {"least": 1, "most": 8, "each": 32, "most_seconds": 2.0}
        self.policy = Policy(**given | {"up_after": 30, "down_after": 600} | settings)
        self.replicas = replicas
        self.now = 1000.0
        self.requests = 0
        self.records: dict[str, tuple[float, int, int]] = {"a": (1.0, 0, 0)}
        """What each replica has read: when it was written, and bounds."""
        self.reported: dict[str, dict[str, float]] = {}

    def after(self, seconds: float = 0.0) -> int:
        self.now += seconds
        raw: dict[str, dict[str, list[Any]]] = {}
        for replica, read in self.records.items():
            for name, value in zip((SINCE, LEAST, MOST), read, strict=True):
                series = [SimpleNamespace(value=-1.0), SimpleNamespace(value=value)]
                raw.setdefault(name, {})[replica] = series
        context = SimpleNamespace(
            current_num_replicas=self.replicas,
            target_num_replicas=self.replicas,
            total_num_requests=self.requests,
            current_time=self.now,
            aggregated_metrics=self.reported,
            raw_metrics=raw,
        )
        wanted, state = self.policy(context)
        assert state == {}
        self.replicas = int(wanted)
        return self.replicas


def test_more_are_started_and_some_stopped_when_that_was_needed_for_long() -> None:
    cluster = Cluster(2)
    cluster.requests = 64
    cluster.reported = {WAITING: {"a": 10.0, "b": 22.0}, FIRST_TOKEN: {"a": 0.5, "b": 3.0}}
    assert [cluster.after(), cluster.after(29)] == [2, 2]
    assert cluster.after(1) == 4
    cluster.requests, cluster.reported = 0, {}
    assert [cluster.after(), cluster.after(500)] == [4, 4]
    cluster.requests = 200  # between, they were needed again
    assert [cluster.after(), cluster.after(10)] == [4, 4]
    cluster.requests = 0
    assert [cluster.after(), cluster.after(599)] == [4, 4]
    assert cluster.after(1) == 1


def test_the_file_s_bounds_are_followed_at_once() -> None:
    assert Cluster(1, least=3, most=3).after() == 3
    assert Cluster(9).after() == 8
    cluster = Cluster(3, least=2, most=3)
    cluster.requests = 10_000
    assert cluster.after(3600) == 3


def test_what_the_records_say_counts_over_the_file_and_at_once() -> None:
    cluster = Cluster(3, least=3, most=3)
    cluster.records["a"] = (2.0, 5, 5)
    assert cluster.after() == 5
    cluster.records["a"] = (3.0, 1, 1)
    assert cluster.after() == 1
    cluster.records["a"] = (4.0, 2, 4)
    cluster.requests = 10_000
    assert cluster.after() == 2
    assert [cluster.after(29), cluster.after(1)] == [2, 4]


def test_who_has_read_the_records_last_is_right() -> None:
    cluster = Cluster(1, least=1, most=1)
    cluster.records = {"a": (5.0, 1, 1), "b": (6.0, 3, 3), "c": (1.0, 9, 9)}
    assert cluster.after() == 3


def test_where_no_replica_has_said_anything_their_number_stays() -> None:
    cluster = Cluster(5, least=1, most=1)
    cluster.records = {}
    assert cluster.after(3600) == 5
    assert said({SINCE: {"a": []}, LEAST: {"a": []}, MOST: {}}) is None
