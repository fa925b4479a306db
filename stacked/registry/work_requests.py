"""Records of long work: status, a percentage that only grows, logs and errors.

The functions are shared with the repository of deployments and with recovery.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Table, Text, func, insert, type_coerce

from stacked.errors import IllegalMove
from stacked.registry.paging import FIRST, Listing, builder
from stacked.registry.records import (
    WORK_REQUEST,
    Affected,
    Page,
    Query,
    WorkError,
    WorkLog,
    WorkRequest,
    new_id,
    now,
)
from stacked.registry.repository import Repository, Rows
from stacked.registry.schema import work_errors, work_logs, work_requests
from stacked.registry.states import WorkStatus

T = TypeVar("T", WorkLog, WorkError)

# Clients interpret 100 as the end of the work, whatever the status.
_MOST_UNFINISHED = 99.0


WORK = Rows(WorkRequest, "work request", work_requests)


def _lines(name: str, record: type[T], table: Table) -> Listing[T]:
    """What is about one piece of work, by time."""
    sorts = {"time": table.c.time}
    return Listing(name, builder(record), table, tuple(table.c), table.c.seq, sorts, {})


_LOGS = _lines("logs", WorkLog, work_logs)
_ERRORS = _lines("errors", WorkError, work_errors)


class WorkRequestRepository(Repository[WorkRequest, WorkRequest]):
    """Long pieces of work, with their logs and errors. Ended work does not change any more."""

    _rows = WORK
    _listing = WORK.listing(
        WorkRequest,
        ("id", "operation", "status", "compartment_id"),
        ("time_accepted", "status", "operation"),
    )

    def open(
        self, operation: str, resources: Sequence[Affected] = (), *, compartment_id: str = ""
    ) -> WorkRequest:
        """Record work that was accepted, under a new id."""
        request = WorkRequest(
            id=new_id(WORK_REQUEST),
            operation=operation,
            resources=tuple(resources),
            compartment_id=compartment_id,
        )
        with self._database.write() as connection:
            return WORK.insert(connection, request, process=self._database.process)

    def list(self, query: Query = FIRST, **filters: Any) -> Page[WorkRequest]:
        """`resource_id` is the id of something that the work acts on."""
        of = filters.pop("resource_id", None)
        with self._database.read() as connection:
            where = [] if of is None else [_acts_on(of)]
            return self._listing.page(connection, query, filters, where, of)

    def list_logs(self, id: str, query: Query = FIRST) -> Page[WorkLog]:
        """Oldest first, unless the query says otherwise."""
        return self._list_of(id, _LOGS, query)

    def list_errors(self, id: str, query: Query = FIRST) -> Page[WorkError]:
        """Oldest first, unless the query says otherwise."""
        return self._list_of(id, _ERRORS, query)

    def advance(
        self, id: str, percent: float, message: str | None = None, step: str | None = None
    ) -> WorkRequest:
        """Begin or continue; a percentage never falls.

        At most 99 is stored: clients interpret 100 as the end, which `succeed` writes.
        Raises IllegalMove if the work has ended.
        """
        with self._database.write() as connection:
            return advance(connection, id, percent, message, step)

    def add_error(self, id: str, code: str, message: str, model_id: str | None = None) -> None:
        """One more reason, in addition to the one given to `fail`."""
        with self._database.write() as connection:
            error(connection, id, code, message, model_id)

    def fail(self, id: str, code: str, message: str, model_id: str | None = None) -> WorkRequest:
        """End the work without success; the percentage stays. Raises IllegalMove."""
        with self._database.write() as connection:
            error(connection, id, code, message, model_id)
            return finish(connection, id, WorkStatus.FAILED)

    def succeed(self, id: str, message: str | None = None) -> WorkRequest:
        """End the work with success. Raises IllegalMove."""
        with self._database.write() as connection:
            return finish(connection, id, WorkStatus.SUCCEEDED, message)

    def cancel(self, id: str) -> WorkRequest:
        """CANCELED if nothing was begun, otherwise CANCELING. Raises IllegalMove."""
        with self._database.write() as connection:
            if WORK.get(connection, id).status is WorkStatus.ACCEPTED:
                return finish(connection, id, WorkStatus.CANCELED, "canceled before it began")
            log(connection, id, "cancellation requested")
            return WORK.move(connection, id, WorkStatus.CANCELING)

    def canceled(self, id: str) -> WorkRequest:
        """The cancelled work has stopped. Raises IllegalMove."""
        with self._database.write() as connection:
            return finish(connection, id, WorkStatus.CANCELED)

    def _list_of(self, id: str, listing: Listing[T], query: Query) -> Page[T]:
        where = listing.source.c.work_request_id == id
        with self._database.read() as connection:
            WORK.row(connection, id)  # raises RecordAbsent
            return listing.page(connection, query, {}, [where], of=id)


def advance(
    connection: Connection,
    id: str,
    percent: float,
    message: str | None = None,
    step: str | None = None,
) -> WorkRequest:
    """Begin the work if it has not begun, and raise its percentage."""
    if not 0 <= percent <= 100:  # NaN too
        raise ValueError(f"a percentage of {percent} is not between 0 and 100")
    request = WORK.get(connection, id)
    if request.status is WorkStatus.ACCEPTED:
        WORK.move(connection, id, WorkStatus.IN_PROGRESS, time_started=now())
    elif request.time_finished is not None:
        raise IllegalMove(f"work request {id} is {request.status.value} and does not advance")
    if message is not None:
        log(connection, id, message, step)
    grown = max(request.percent, min(percent, _MOST_UNFINISHED))
    return WORK.change(connection, id, {"percent": grown})


def finish(
    connection: Connection, id: str, status: WorkStatus, message: str | None = None
) -> WorkRequest:
    """The last move: SUCCEEDED, FAILED or CANCELED."""
    done = {"percent": 100.0} if status is WorkStatus.SUCCEEDED else {}
    finished = WORK.move(connection, id, status, time_finished=now(), **done)
    if message is not None:
        log(connection, id, message)
    return finished


def log(connection: Connection, id: str, message: str, step: str | None = None) -> None:
    line = {"step": step, "message": message, "time": now()}
    connection.execute(insert(work_logs).values(work_request_id=id, **line))


def error(connection: Connection, id: str, code: str, message: str, model_id: str | None) -> None:
    """Why work failed; there may be one error a model."""
    WORK.row(connection, id)  # raises RecordAbsent
    connection.execute(
        insert(work_errors).values(
            work_request_id=id, code=code, message=message, model_id=model_id, time=now()
        )
    )


def _acts_on(id: str) -> ColumnElement[bool]:
    # As it is written; within a string of the JSON, its quotes would follow backslashes.
    named = f'"id": {json.dumps(id)}'
    text = type_coerce(work_requests.c.resources, Text)
    return func.replace(text, named, "") != text
