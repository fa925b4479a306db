"""Records to rows and back, and the one place where a record's state changes.

It must not know what any kind of record is for.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, Table, insert, select, update

from stacked.errors import RecordAbsent, RecordStale
from stacked.registry.ids import now
from stacked.registry.records import Record
from stacked.registry.states import check_move

T = TypeVar("T")

# How people call one row of a table.
NOUNS = {
    "models": "model",
    "version_histories": "version history",
    "model_version_sets": "model version set",
    "model_groups": "model group",
    "deployments": "deployment",
    "work_requests": "work request",
}


def find(connection: Connection, table: Table, id: str) -> RowMapping | None:
    return connection.execute(select(table).where(table.c.id == id)).mappings().first()


def fetch(connection: Connection, table: Table, id: str) -> RowMapping:
    """The row of that id. Raises RecordAbsent."""
    row = find(connection, table, id)
    if row is None:
        raise RecordAbsent(f"there is no {NOUNS[table.name]} {id}")
    return row


def build(kind: type[T], row: RowMapping, **more: Any) -> T:
    """A record of what the row has; `more` are fields that stand elsewhere."""
    names = [field.name for field in fields(kind) if field.name in row]  # type: ignore[arg-type]
    return kind(**{name: row[name] for name in names}, **more)


def values(table: Table, record: Any) -> dict[str, Any]:
    """What a new row of the record says; it was last updated when it was made."""
    given = {field.name: getattr(record, field.name) for field in fields(record)}
    if isinstance(record, Record):
        given["time_updated"] = record.time_created
    return {name: value for name, value in given.items() if name in table.c}


def add(connection: Connection, table: Table, record: Any, **more: Any) -> None:
    """Insert what the record has of the table's columns; `more` overrules it."""
    connection.execute(insert(table).values(values(table, record) | more))


def change(connection: Connection, table: Table, id: str, columns: Mapping[str, Any]) -> None:
    """Write columns of a record that is there."""
    times = {"time_updated": now()} if "time_updated" in table.c else {}
    connection.execute(update(table).where(table.c.id == id).values({**columns, **times}))


def move(connection: Connection, table: Table, id: str, after: enum.Enum, **columns: Any) -> None:
    """The one place where a state is written. Raises RecordAbsent, IllegalMove.

    `columns` change with it.
    """
    column = "status" if "status" in table.c else "state"
    before = fetch(connection, table, id)[column]
    check_move(f"{NOUNS[table.name]} {id}", before, after)
    change(connection, table, id, {column: after, **columns})


def check_kept(what: str, state: enum.Enum) -> None:
    """Raise RecordAbsent for a deleted record: it can be read, and nothing else."""
    if state.value == "DELETED":
        raise RecordAbsent(f"{what} is deleted")


def check_fresh(stored: T, expect: T | None) -> T:
    """The stored record. Raises RecordStale where the caller acts on another one."""
    if expect is not None and stored != expect:
        assert isinstance(stored, Record)
        raise RecordStale(f"{stored.id} has changed since it was read; read it again")
    return stored


def differing(stored: Record, given: Record, names: tuple[str, ...]) -> list[str]:
    """The fields, among `names`, in which two records differ; compared as JSON has them."""

    def plain(record: Record, name: str) -> str:
        return json.dumps(getattr(record, name), sort_keys=True, default=asdict)

    return [name for name in names if plain(stored, name) != plain(given, name)]
