"""Usage: added by the hour, summed as wanted, there after a restart, and bounded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacked.registry import Registry, Shared
from stacked.registry import usage as module
from stacked.registry.usage import Counts, Used, hour_of

NOW = datetime(2026, 1, 2, 10, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
ONE = Counts(1, 0, 10, 5)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def test_counts_of_an_hour_are_added_up_and_survive_a_restart(where: Path | Shared) -> None:
    with Registry(where) as registry:
        registry.usage.add({("alice", "sql"): ONE}, NOW)
    with Registry(where) as registry:
        registry.usage.add({("alice", "sql"): Counts(2, 1), ("bob", "sql"): ONE}, NOW)
        assert registry.usage.totals(LONG_AGO) == [
            Used("alice", "sql", Counts(3, 1, 10, 5)),
            Used("bob", "sql", ONE),
        ]


def test_they_are_summed_by_credential_and_by_key(registry: Registry) -> None:
    registry.usage.add({("alice", "sql"): ONE, ("alice", "triage"): ONE, ("bob", "sql"): ONE}, NOW)
    double = ONE.plus(ONE)
    by_key = registry.usage.totals(LONG_AGO, "key")
    assert by_key == [Used(None, "sql", double), Used(None, "triage", ONE)]
    by_credential = registry.usage.totals(LONG_AGO, "credential")
    assert by_credential == [Used("alice", None, double), Used("bob", None, ONE)]


def test_only_hours_from_the_given_one_on_are_summed(registry: Registry) -> None:
    for ago in range(3):
        registry.usage.add({("alice", "sql"): ONE}, NOW - ago * HOUR)
    (found,) = registry.usage.totals(hour_of(NOW - HOUR))
    assert found.counts.requests == 2


def test_old_hours_are_forgotten(registry: Registry) -> None:
    for ago in range(3):
        registry.usage.add({("alice", "sql"): ONE}, NOW - ago * HOUR)
    registry.usage.forget(NOW - HOUR)
    (found,) = registry.usage.totals(LONG_AGO)
    assert found.counts.requests == 1


def test_the_rows_are_bounded_and_the_oldest_hours_go(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    for ago in range(5):
        registry.usage.add({("alice", "sql"): ONE, ("bob", "sql"): ONE}, NOW - ago * HOUR)
    registry.usage.forget(LONG_AGO)
    assert [each.counts.requests for each in registry.usage.totals(LONG_AGO)] == [2, 2]
    assert len(registry.usage.totals(hour_of(NOW - HOUR))) == 2
