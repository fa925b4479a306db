"""Records of long work: status, a percentage that only grows, logs and errors.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from sqlalchemy import ColumnElement, Connection, Text, exists, func, insert, type_coerce

from stacked.errors import IllegalMove
from stacked.registry.ids import now
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import Page, Query, WorkError, WorkLog, WorkRequest
from stacked.registry.rows import add, build, change, fetch, move
from stacked.registry.schema import work_errors, work_logs, work_requests
from stacked.registry.states import WorkStatus

# Clients take 100 for the end of the work, whatever the status says.
_MOST_UNFINISHED = 99.0


class WorkFilters(TypedDict, total=False):
    """None does not filter; `resource_id` is the id of something the work acts on."""

    id: str | None
    operation: str | None
    status: WorkStatus | None
    compartment_id: str | None
    resource_id: str | None


_FILTERS = ("id", "operation", "status", "compartment_id")

LISTING = Listing(
    name="work requests",
    source=work_requests,
    columns=tuple(work_requests.c),
    seq=work_requests.c.seq,
    sorts={name: work_requests.c[name] for name in ("time_accepted", "status", "operation")},
    filters={name: work_requests.c[name] for name in _FILTERS},
)

LOGS, ERRORS = (
    Listing(
        name=name,
        source=table,
        columns=tuple(table.c),
        seq=table.c.seq,
        sorts={"time": table.c.time},
        filters={},
    )
    for name, table in (("logs", work_logs), ("errors", work_errors))
)


def open_(connection: Connection, request: WorkRequest) -> WorkRequest:
    add(connection, work_requests, request)
    return get(connection, request.id)


def get(connection: Connection, id: str) -> WorkRequest:
    return build(WorkRequest, fetch(connection, work_requests, id))


def list_(
    connection: Connection, query: Query, **filters: Unpack[WorkFilters]
) -> Page[WorkRequest]:
    of = filters.get("resource_id")
    columns = {name: filters.get(name) for name in _FILTERS}
    where = [] if of is None else [_acts_on(of)]
    rows, following = read_page(connection, LISTING, query, columns, where, of)
    return Page(tuple(build(WorkRequest, row) for row in rows), following)


def list_logs(connection: Connection, id: str, query: Query) -> Page[WorkLog]:
    fetch(connection, work_requests, id)
    rows, following = read_page(
        connection, LOGS, query, {}, [work_logs.c.work_request_id == id], id
    )
    return Page(tuple(build(WorkLog, row) for row in rows), following)


def list_errors(connection: Connection, id: str, query: Query) -> Page[WorkError]:
    fetch(connection, work_requests, id)
    rows, following = read_page(
        connection, ERRORS, query, {}, [work_errors.c.work_request_id == id], id
    )
    return Page(tuple(build(WorkError, row) for row in rows), following)


def advance(connection: Connection, id: str, percent: float, message: str | None) -> WorkRequest:
    """Begin the work where it has not begun, and let its percentage grow."""
    if not 0 <= percent <= 100:  # NaN too
        raise ValueError(f"a percentage of {percent} is not between 0 and 100")
    request = get(connection, id)
    if request.status is WorkStatus.ACCEPTED:
        move(connection, work_requests, id, WorkStatus.IN_PROGRESS, time_started=now())
    elif request.time_finished is not None:
        raise IllegalMove(f"work request {id} is {request.status.value} and does not advance")
    grown = max(request.percent, min(percent, _MOST_UNFINISHED))
    change(connection, work_requests, id, {"percent": grown})
    if message is not None:
        log(connection, id, message)
    return get(connection, id)


def finish(
    connection: Connection, id: str, status: WorkStatus, message: str | None = None
) -> WorkRequest:
    """The last move: SUCCEEDED, FAILED or CANCELED."""
    done = {"percent": 100.0} if status is WorkStatus.SUCCEEDED else {}
    move(connection, work_requests, id, status, time_finished=now(), **done)
    if message is not None:
        log(connection, id, message)
    return get(connection, id)


def cancel(connection: Connection, id: str) -> WorkRequest:
    """Ask for the end: at once where nothing was begun, else through CANCELING."""
    if get(connection, id).status is WorkStatus.ACCEPTED:
        return finish(connection, id, WorkStatus.CANCELED, "canceled before it began")
    move(connection, work_requests, id, WorkStatus.CANCELING)
    log(connection, id, "asked to stop")
    return get(connection, id)


def log(connection: Connection, id: str, message: str) -> None:
    connection.execute(insert(work_logs).values(work_request_id=id, message=message, time=now()))


def error(connection: Connection, id: str, code: str, message: str, model_id: str | None) -> None:
    """A reason, beside the status; there may be one a model."""
    fetch(connection, work_requests, id)
    connection.execute(
        insert(work_errors).values(
            work_request_id=id, code=code, message=message, model_id=model_id, time=now()
        )
    )


def _acts_on(id: str) -> ColumnElement[bool]:
    each = func.json_each(type_coerce(work_requests.c.resources, Text)).table_valued("value")
    return exists().where(func.json_extract(each.c.value, "$.id") == id)
