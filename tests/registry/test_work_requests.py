"""Work requests: the table of moves, the percentage that only grows, logs and errors."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stacked.errors import IllegalMove, RecordAbsent
from stacked.registry import (
    WORK_REQUEST,
    Affected,
    Query,
    Registry,
    WorkRequest,
    WorkStatus,
    new_id,
)
from stacked.registry.states import MOVES, check_move
from tests.registry.samples import started

FINAL = {WorkStatus.SUCCEEDED, WorkStatus.FAILED, WorkStatus.CANCELED}


def test_work_request_is_read_as_it_was_opened(registry: Registry) -> None:
    resources = [Affected("UPDATED", "data-science-model-deployment", "d", "/x")]
    opened = registry.work_requests.open("MODEL_DEPLOYMENT_UPDATE", resources, compartment_id="c")
    assert opened.resources == tuple(resources)
    assert (opened.status, opened.percent) == (WorkStatus.ACCEPTED, 0)
    assert (opened.time_started, opened.time_finished) == (None, None)
    assert registry.work_requests.get(opened.id) == opened


def test_success_is_the_only_way_to_100(registry: Registry) -> None:
    id = registry.work_requests.open("X").id
    begun = registry.work_requests.advance(id, 30, "staging", "STAGE")
    assert (begun.status, begun.percent) == (WorkStatus.IN_PROGRESS, 30)
    assert begun.time_started is not None
    assert registry.work_requests.advance(id, 100).percent == 99
    done = registry.work_requests.succeed(id, "done")
    assert (done.status, done.percent) == (WorkStatus.SUCCEEDED, 100)
    assert done.time_finished is not None
    assert done.time_accepted <= begun.time_started <= done.time_finished
    logs = registry.work_requests.list_logs(id).items
    assert [(log.step, log.message) for log in logs] == [("STAGE", "staging"), (None, "done")]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(percents=st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_percentage_never_falls(registry: Registry, percents: list[float]) -> None:
    id = registry.work_requests.open("X").id
    seen = [registry.work_requests.advance(id, percent).percent for percent in percents]
    assert seen == list(itertools.accumulate((min(p, 99.0) for p in percents), max))
    failed = registry.work_requests.fail(id, "NoReason", "none")
    assert failed.percent == seen[-1]


@pytest.mark.parametrize("percent", [-1, 100.5, math.nan, math.inf])
def test_percentage_that_is_none_is_refused(registry: Registry, percent: float) -> None:
    id = registry.work_requests.open("X").id
    with pytest.raises(ValueError, match="between 0 and 100"):
        registry.work_requests.advance(id, percent)
    assert registry.work_requests.get(id).status is WorkStatus.ACCEPTED


def test_failure_tells_why_per_model(registry: Registry) -> None:
    id = started(registry)
    registry.work_requests.add_error(
        id, "FileMissing", "no weights", "ocid1.datasciencemodel.oc1..a"
    )
    failed = registry.work_requests.fail(
        id, "RankRefused", "rank 512", "ocid1.datasciencemodel.oc1..b"
    )
    assert failed.status is WorkStatus.FAILED
    assert failed.time_finished is not None
    errors = registry.work_requests.list_errors(id).items
    assert [(e.code, e.message, (e.model_id or "")[-1]) for e in errors] == [
        ("FileMissing", "no weights", "a"),
        ("RankRefused", "rank 512", "b"),
    ]


def in_status(registry: Registry, status: WorkStatus) -> str:
    id = registry.work_requests.open("X").id
    if status is WorkStatus.ACCEPTED:
        return id
    registry.work_requests.advance(id, 5)
    if status in (WorkStatus.CANCELING, WorkStatus.CANCELED):
        registry.work_requests.cancel(id)
    if status in FINAL:
        ends = {
            WorkStatus.SUCCEEDED: lambda: registry.work_requests.succeed(id),
            WorkStatus.FAILED: lambda: registry.work_requests.fail(id, "C", "m"),
            WorkStatus.CANCELED: lambda: registry.work_requests.canceled(id),
        }
        ends[status]()
    return id


@pytest.mark.parametrize("status", WorkStatus, ids=lambda status: status.value)
def test_only_legal_moves_are_made(registry: Registry, status: WorkStatus) -> None:
    acts = {
        "advance": lambda id: registry.work_requests.advance(id, 50),
        "succeed": registry.work_requests.succeed,
        "fail": lambda id: registry.work_requests.fail(id, "C", "m"),
        "cancel": registry.work_requests.cancel,
        "canceled": registry.work_requests.canceled,
    }
    legal = {
        WorkStatus.ACCEPTED: {"advance", "fail", "cancel", "canceled"},
        WorkStatus.IN_PROGRESS: {"advance", "succeed", "fail", "cancel"},
        WorkStatus.CANCELING: {"advance", "succeed", "fail", "canceled"},
    }.get(status, set())
    for name, act in acts.items():
        id = in_status(registry, status)
        before = registry.work_requests.get(id)
        errors = registry.work_requests.list_errors(id).items
        assert before.status is status
        if name in legal:
            after: WorkRequest = act(id)
            assert after.status is before.status or after.status in MOVES[before.status]
        else:
            with pytest.raises(IllegalMove, match=status.value):
                act(id)
            assert registry.work_requests.get(id) == before
            assert registry.work_requests.list_errors(id).items == errors


def test_table_lets_every_state_end_and_no_final_one_go_on() -> None:
    for state, moves in MOVES.items():
        assert state not in moves
        assert {type(move) for move in moves} <= {type(state)}
    for status in WorkStatus:
        assert bool(MOVES[status]) == (status not in FINAL)
    with pytest.raises(IllegalMove, match="what may follow: nothing"):
        check_move("it", WorkStatus.FAILED, WorkStatus.IN_PROGRESS)


def test_lists_filter_by_status_operation_and_resource(registry: Registry) -> None:
    on_a = registry.work_requests.open(
        "A", [Affected("UPDATED", "e", "x"), Affected("U", "e", "a")]
    )
    on_b = registry.work_requests.open("B", [Affected("UPDATED", "e", "b")])
    registry.work_requests.advance(on_b.id, 1)
    assert [r.id for r in registry.work_requests.list(resource_id="a").items] == [on_a.id]
    assert registry.work_requests.list(resource_id="c").items == ()
    assert [r.id for r in registry.work_requests.list(operation="B").items] == [on_b.id]
    running = registry.work_requests.list(status=WorkStatus.IN_PROGRESS).items
    assert [r.id for r in running] == [on_b.id]
    newest = registry.work_requests.list().items
    assert [r.id for r in newest] == [on_b.id, on_a.id]


def test_logs_come_in_pages_oldest_first(registry: Registry) -> None:
    id = started(registry)
    for at in range(5):
        registry.work_requests.advance(id, at, f"step {at}")
    first = registry.work_requests.list_logs(id, Query(limit=3))
    registry.work_requests.advance(id, 9, "late")
    rest = registry.work_requests.list_logs(id, Query(limit=3, page=first.next))
    assert [log.message for log in first.items + rest.items] == [
        *(f"step {at}" for at in range(5)),
        "late",
    ]
    assert rest.next is None


def test_absent_work_request_is_reported(registry: Registry) -> None:
    id = new_id(WORK_REQUEST)
    for act in (
        registry.work_requests.get,
        registry.work_requests.succeed,
        registry.work_requests.list_logs,
        registry.work_requests.cancel,
    ):
        with pytest.raises(RecordAbsent, match=id):
            act(id)
    with pytest.raises(RecordAbsent, match=id):
        registry.work_requests.fail(id, "C", "m")
