"""Rows of a table as records, and what the repositories of all tables share.

`Rows` works in a transaction that is given; a `Repository` opens one of its own in every method.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Table,
    insert,
    select,
    update,
)

from stacked.errors import RecordAbsent, RecordStale
from stacked.registry.database import Database
from stacked.registry.paging import FIRST, Listing, build, builder, filter_columns
from stacked.registry.records import Page, Query, Record, WorkRequest, now
from stacked.registry.states import check_move

R = TypeVar("R", bound=Record | WorkRequest)
T = TypeVar("T")

SORTS = ("time_created", "display_name", "state")
FILTERS = ("id", "display_name", "state", "created_by", "compartment_id", "project_id")
"""What every list of records is filtered by."""
DESCRIBED = ("display_name", "description", "compartment_id", "tags")
"""The fields of most records that may change at any time."""


class Rows(Generic[R]):
    """The rows of one table, as records of one kind.

    `noun` is what messages call one of them. `source` is the table, joined if a record has a
    column of another table: those are `more`.
    """

    def __init__(
        self,
        record: type[R],
        noun: str,
        table: Table,
        source: FromClause | None = None,
        *more: ColumnElement[Any],
    ) -> None:
        self.record = record
        self.noun = noun
        self.table = table
        self.state = table.c["status" if "status" in table.c else "state"]
        self.source: FromClause = table if source is None else source
        self.columns: tuple[ColumnElement[Any], ...] = (*table.c, *more)

    def listing(
        self,
        record: type[T],
        filters: Sequence[str] = FILTERS,
        sorts: Sequence[str] = SORTS,
        **columns: ColumnElement[Any],
    ) -> Listing[T]:
        """How they are listed; `filters` and `sorts` are columns, `columns` other filters."""
        return Listing(
            name=self.table.name.replace("_", " "),
            record=builder(record),
            source=self.source,
            columns=self.columns,
            seq=self.table.c.seq,
            sorts={name: self.table.c[name] for name in sorts},
            filters={**filter_columns(filters, self.table), **columns},
        )

    def row(self, connection: Connection, id: str) -> RowMapping:
        """Raises RecordAbsent."""
        found = self._rows(connection, [id])
        if not found:
            raise RecordAbsent(f"there is no {self.noun} {id}")
        return found[0]

    def get(self, connection: Connection, id: str) -> R:
        """Raises RecordAbsent."""
        return self._build(connection, self.row(connection, id))

    def find(self, connection: Connection, id: str) -> R | None:
        """None if there is no such row."""
        found = self._rows(connection, [id])
        return self._build(connection, found[0]) if found else None

    def get_many(self, connection: Connection, ids: Iterable[str]) -> dict[str, R]:
        """The existing ones, by id."""
        return {row["id"]: self._build(connection, row) for row in self._rows(connection, ids)}

    def current(self, connection: Connection, id: str, expect: R | None = None) -> R:
        """A record that may be changed: not DELETED (RecordAbsent), and as the caller has read it.

        Raises RecordStale if it differs from `expect`.
        """
        row = self.row(connection, id)
        if row[self.state.name].value == "DELETED":
            raise RecordAbsent(f"{self.noun} {id} is DELETED; only its record is left")
        return check_fresh(self._build(connection, row), expect)

    def insert(self, connection: Connection, record: R, **more: Any) -> R:
        """Insert its row; `more` are columns that override it."""
        connection.execute(insert(self.table).values(values(self.table, record) | more))
        return self.get(connection, record.id)

    def change(self, connection: Connection, id: str, columns: Mapping[str, Any]) -> R:
        """Write columns of an existing record, and the time."""
        times = {"time_updated": now()} if "time_updated" in self.table.c else {}
        wanted = update(self.table).where(self.table.c.id == id)
        connection.execute(wanted.values({**columns, **times}))
        return self.get(connection, id)

    def move(self, connection: Connection, id: str, after: enum.Enum, **columns: Any) -> R:
        """The one place where a state is written; `columns` change with it.

        Raises RecordAbsent, IllegalMove.
        """
        check_move(f"{self.noun} {id}", self.row(connection, id)[self.state.name], after)
        return self.change(connection, id, {self.state.name: after, **columns})

    def _rows(self, connection: Connection, ids: Iterable[str]) -> Sequence[RowMapping]:
        wanted = select(*self.columns).select_from(self.source)
        return connection.execute(wanted.where(self.table.c.id.in_(set(ids)))).mappings().all()

    def _build(self, connection: Connection, row: RowMapping) -> R:
        """A record of a row; a kind with rows in several tables reads the others here."""
        return build(self.record, row)


class Repository(Generic[R, T]):
    """The records of one kind. Every method is one transaction, and may be called by any thread.

    Filters are named in `_listing`.
    """

    _rows: Rows[R]
    _listing: Listing[T]

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, id: str) -> R:
        """Raises RecordAbsent."""
        with self._database.read() as connection:
            return self._rows.get(connection, id)

    def list(self, query: Query = FIRST, **filters: Any) -> Page[T]:
        """One page. Filters that are None do not filter."""
        with self._database.read() as connection:
            return self._listing.page(connection, query, filters)


class Editable(Repository[R, T]):
    """Records that change by request.

    `expect` is a record as the caller has read it: RecordStale if it has changed since. A deleted
    record can be read; changing it raises RecordAbsent.
    """

    _changes: Collection[str]
    """The fields that may change at any time."""

    def update(self, id: str, expect: R | None = None, **changes: Any) -> R:
        """Write fields that may change at any time."""
        if not changes.keys() <= set(self._changes):
            raise ValueError(f"{self._rows.noun}s change in {', '.join(self._changes)} alone")
        with self._database.write() as connection:
            stored = self._rows.current(connection, id, expect)
            self._prepare(connection, stored, changes)
            return self._rows.change(connection, id, changes)

    def set_state(self, id: str, state: Any, reason: str = "", expect: R | None = None) -> R:
        """Raises IllegalMove."""
        with self._database.write() as connection:
            stored = self._rows.current(connection, id, expect)
            self._leave(connection, stored, state)
            return self._rows.move(connection, id, state, reason=reason)

    def _prepare(self, connection: Connection, stored: R, changes: dict[str, Any]) -> None:
        """What a kind does, or refuses, before changes are written; it may alter them."""

    def _leave(self, connection: Connection, stored: R, state: Any) -> None:
        """What a kind does, or refuses, before a state is written."""


def values(table: Table, record: Any) -> dict[str, Any]:
    """The values of a new row for the record; it was last updated when it was created."""
    given = {field.name: getattr(record, field.name) for field in fields(record)}
    if isinstance(record, Record):
        given["time_updated"] = record.time_created
    return {name: value for name, value in given.items() if name in table.c}


def check_fresh(stored: R, expect: R | None) -> R:
    """The stored record. Raises RecordStale if the caller acts on another one."""
    if expect is not None and stored != expect:
        raise RecordStale(f"{stored.id} has changed since it was read; read it again")
    return stored


def differing(stored: Record, given: Record, names: tuple[str, ...]) -> list[str]:
    """The fields, among `names`, in which two records differ; compared as JSON has them."""

    def plain(record: Record, name: str) -> str:
        return json.dumps(getattr(record, name), sort_keys=True, default=asdict)

    return [name for name in names if plain(stored, name) != plain(given, name)]
