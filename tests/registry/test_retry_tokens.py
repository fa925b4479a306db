"""Retry tokens: stored with their answers for a day, bounded, and there after a restart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacked.registry import Registry, Shared, retry_tokens
from stacked.registry.retry_tokens import FirstCall, RetryToken, StoredAnswer

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TOKEN = RetryToken("alice", "POST /20190101/models", "t1")
ANSWER = StoredAnswer(200, {"etag": "e", "content-type": "application/json"}, b'{"id": "m"}' * 100)


def test_a_call_is_begun_once_and_answered_as_it_was(registry: Registry) -> None:
    assert registry.retry_tokens.begin(TOKEN, "p", NOW) is None
    assert registry.retry_tokens.begin(TOKEN, "p", NOW) == FirstCall("p", None)
    registry.retry_tokens.finish(TOKEN, "p", ANSWER)
    assert registry.retry_tokens.begin(TOKEN, "other", NOW) == FirstCall("p", ANSWER)


@pytest.mark.parametrize(
    "other",
    [
        RetryToken("bob", TOKEN.operation, TOKEN.token),
        RetryToken(TOKEN.principal, "POST /20190101/modelGroups", TOKEN.token),
        RetryToken(TOKEN.principal, TOKEN.operation, "t2"),
    ],
)
def test_principal_operation_and_token_make_a_call(registry: Registry, other: RetryToken) -> None:
    registry.retry_tokens.begin(TOKEN, "p", NOW)
    registry.retry_tokens.finish(TOKEN, "p", ANSWER)
    assert registry.retry_tokens.begin(other, "p", NOW) is None


def test_it_is_there_after_a_restart(where: Path | Shared) -> None:
    with Registry(where) as registry:
        registry.retry_tokens.begin(TOKEN, "p", NOW)
        registry.retry_tokens.finish(TOKEN, "q", ANSWER)
        registry.retry_tokens.begin(RetryToken("alice", "POST /x", "cut off"), "p", NOW)
    with Registry(where) as registry:
        assert registry.retry_tokens.begin(TOKEN, "p", NOW) == FirstCall("q", ANSWER)
        cut = registry.retry_tokens.begin(RetryToken("alice", "POST /x", "cut off"), "p", NOW)
        assert cut == FirstCall("p", None)


def test_a_call_that_did_nothing_is_forgotten(registry: Registry) -> None:
    registry.retry_tokens.begin(TOKEN, "p", NOW)
    registry.retry_tokens.forget(TOKEN)
    assert registry.retry_tokens.begin(TOKEN, "p", NOW) is None


def test_a_day_later_it_is_forgotten(registry: Registry) -> None:
    registry.retry_tokens.begin(TOKEN, "p", NOW)
    almost = NOW + timedelta(hours=23, minutes=59)
    assert registry.retry_tokens.begin(TOKEN, "p", almost) == FirstCall("p", None)
    assert registry.retry_tokens.begin(TOKEN, "p", NOW + timedelta(hours=24)) is None


def test_of_too_many_the_oldest_are_forgotten(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_tokens, "MAX_TOKENS", 3)
    calls = [RetryToken("alice", "POST /x", f"t{at}") for at in range(5)]
    for call in calls:
        assert registry.retry_tokens.begin(call, "p", NOW) is None
    for call in calls[2:]:
        assert registry.retry_tokens.begin(call, "p", NOW) is not None
    assert registry.retry_tokens.begin(calls[1], "p", NOW) is None
