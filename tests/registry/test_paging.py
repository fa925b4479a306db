"""Pages: every row once and in order, whatever is added between them; tokens that are refused."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stacked.errors import PageInvalid
from stacked.registry import Model, ModelState, Query, Registry
from tests.registry.samples import adapter

NUMBERS = itertools.count()
START = datetime(2026, 1, 1, tzinfo=UTC)
# Few values, so that many rows are equal in what sorts them; names whose order needs care.
NAMES = st.sampled_from(["", "a", "B", "b", "é", "z\x01", "100", "20"])
ROWS = st.lists(st.tuples(NAMES, st.integers(0, 3)), max_size=12)


def model(number: int, name: str, second: int) -> Model:
    return adapter(number, display_name=name, time_created=START + timedelta(seconds=second))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=ROWS,
    between=st.lists(ROWS, max_size=4),
    limit=st.integers(1, 5),
    sort=st.sampled_from(["time_created", "display_name", "state"]),
    descending=st.booleans(),
)
def test_rows_that_were_there_are_listed_once_in_order_while_others_are_added(
    registry: Registry,
    before: list[tuple[str, int]],
    between: list[list[tuple[str, int]]],
    limit: int,
    sort: str,
    descending: bool,
) -> None:
    project = str(next(NUMBERS))  # all examples share one table

    def put(rows: list[tuple[str, int]]) -> list[Model]:
        return registry.models.put_all(
            [replace(model(next(NUMBERS), *row), project_id=project) for row in rows]
        )

    there = put(before)
    listed: list[Model] = []
    page = None
    waves = iter(between)
    while True:
        found = registry.models.list(Query(sort, descending, limit, page), project_id=project)
        assert len(found.items) == limit or found.next is None
        listed += found.items
        page = found.next
        if page is None:
            break
        put(next(waves, []))
    ids = [item.id for item in listed]
    assert len(set(ids)) == len(ids)
    assert {item.id for item in there} <= set(ids)
    numbered = [(sorting(item, sort), int(item.id[-8:], 16)) for item in listed]
    assert numbered == sorted(numbered, reverse=descending)


def sorting(item: Model, sort: str) -> bytes | datetime:
    if sort == "time_created":
        return item.time_created
    return (item.display_name if sort == "display_name" else item.state.value).encode()


def test_default_order_is_newest_first_and_by_name_ascending(registry: Registry) -> None:
    registry.models.put_all([model(0, "b", 0), model(1, "a", 1), model(2, "B", 1)])
    assert [m.display_name for m in registry.models.list().items] == ["B", "a", "b"]
    by_name = registry.models.list(Query(sort="display_name")).items
    assert [m.display_name for m in by_name] == ["B", "a", "b"]


def test_filters_are_all_applied_and_none_does_not_filter(registry: Registry) -> None:
    registry.models.put_all(
        [adapter(at, created_by="ab"[at % 2], project_id="pq"[at // 2]) for at in range(4)]
    )
    registry.models.set_state(adapter(1).id, ModelState.INACTIVE)
    found = registry.models.list(created_by="b", state=ModelState.INACTIVE, id=None).items
    assert [m.id for m in found] == [adapter(1).id]
    assert len(registry.models.list(created_by="a").items) == 2
    assert registry.models.list(project_id="p", digest=adapter(3).digest).items == ()


def test_pages_end_where_the_rows_do(registry: Registry) -> None:
    registry.models.put_all([adapter(at) for at in range(4)])
    first = registry.models.list(Query(limit=2))
    assert first.next is not None
    assert registry.models.list(Query(limit=2, page=first.next)).next is None
    assert registry.models.list(Query(limit=4)).next is None
    assert registry.models.list(Query(limit=5)).next is None


def test_token_is_of_one_list_with_its_order_and_filters(registry: Registry) -> None:
    registry.models.put_all([adapter(at, created_by="a") for at in range(4)])
    token = registry.models.list(Query(limit=2), created_by="a").next
    assert token is not None
    assert registry.models.list(Query(limit=1, page=token), created_by="a").items
    for attempt in (
        lambda: registry.models.list(Query(page=token)),
        lambda: registry.models.list(Query(page=token), created_by="b"),
        lambda: registry.models.list(Query(page=token, descending=False), created_by="a"),
        lambda: registry.models.list(Query(page=token, sort="state"), created_by="a"),
        lambda: registry.groups.list(Query(page=token), created_by="a"),
    ):
        with pytest.raises(PageInvalid, match="begin without a token"):
            attempt()


def forged(registry: Registry, by: object, seq: object) -> str:
    token = registry.models.list(Query(limit=1)).next
    assert token is not None
    mark = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))[0]
    return base64.urlsafe_b64encode(json.dumps([mark, by, seq]).encode()).decode().rstrip("=")


def test_nonsense_as_token_sort_or_limit_is_refused(registry: Registry) -> None:
    registry.models.put_all([adapter(at) for at in range(4)])
    tokens = ["", "x", "Ünsinn", "====", "e30", "W10", "bnVsbA", "a" * 9999, "W1tb" * 9000]
    values: list[tuple[object, object]] = [
        (1, 1),
        (None, 1),
        ("x", "1"),
        ("x", True),
        ("x", 2**64),
        ("x", -(2**70)),
        ("\ud800", 1),
        (["x"], 1),
    ]
    for token in [*tokens, *(forged(registry, by, seq) for by, seq in values)]:
        with pytest.raises(PageInvalid):
            registry.models.list(Query(page=token))
    with pytest.raises(PageInvalid, match="color"):
        registry.models.list(Query(sort="color"))
    for limit in (0, -1, 1001):
        with pytest.raises(PageInvalid, match=str(limit)):
            registry.models.list(Query(limit=limit))


def test_10_000_rows_are_listed_filtered_and_paged(registry: Registry) -> None:
    registry.models.put_all([model(at, f"m{at % 100}", at) for at in range(10_000)])
    seen: set[str] = set()
    query = Query("display_name", False, 1000)
    while True:
        found = registry.models.list(query)
        seen |= {item.id for item in found.items}
        if found.next is None:
            break
        query = replace(query, page=found.next)
    assert len(seen) == 10_000
    assert len(registry.models.list(display_name="m7").items) == 100
