"""What the replicas of one fleet share, in a schema of PostgreSQL or a SQLite file of one machine.

Each operation is one transaction of `stacked.fleet.shared.apply`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, delete, insert, select
from sqlalchemy import update as change

from stacked.fleet.shared import (
    Beat,
    Fleet,
    Look,
    Mode,
    Operation,
    Report,
    Shared,
    Stage,
    View,
    apply,
)
from stacked.registry.postgresql import Postgresql
from stacked.registry.postgresql import Shared as Schema
from stacked.registry.sqlite import Sqlite

_TABLES = MetaData()
_FLEET = Table(
    "fleet",
    _TABLES,
    *(
        Column(name, Integer if name in ("generation", "fence") else Text, nullable=False)
        for name in Fleet.__dataclass_fields__
    ),
)
_MEMBERS = Table(
    "members",
    _TABLES,
    *(
        Column(
            name,
            Text if name in ("id", "name", "reason") else Integer,
            nullable=False,
            primary_key=name == "id",
        )
        for name in Report.__dataclass_fields__
    ),
)


class FleetStore:
    """One fleet's rows. Every method blocks, and may be called from any thread."""

    def __init__(self, where: Path | Schema, busy_seconds: float) -> None:
        self._store = (
            Postgresql(where, busy_seconds)
            if isinstance(where, Schema)
            else Sqlite(where, busy_seconds)
        )
        with self._store.migrating() as connection:
            _TABLES.create_all(connection)

    def carry_out(self, id: str, operation: Operation) -> View:
        """Do it for the replica with this id, whose every Beat is; what that sees then."""
        with self._store.transaction(write=not isinstance(operation, Look)) as connection:
            before = _read(connection, id, operation)
            after = apply(before, operation)
            _write(connection, before, after)
        return View.of(after, id)

    def close(self) -> None:
        self._store.close()


def _read(connection: Connection, id: str, operation: Operation) -> Shared:
    """What the operation and its view need: of many members mostly two."""
    row = connection.execute(select(_FLEET)).mappings().one_or_none()
    if row is None:
        return Shared()
    stored = {**row, "mode": Mode(row["mode"]), "stage": Stage(row["stage"])}
    fleet = Fleet(**stored)
    query = select(_MEMBERS)
    leads = fleet.coordinator == id and not fleet.at_rest
    if isinstance(operation, Look | Beat) and not leads:
        query = query.where(_MEMBERS.c.id.in_((id, fleet.coordinator)))
    rows = connection.execute(query).mappings()
    return Shared(fleet, {row["id"]: Report(**row) for row in rows})


def _write(connection: Connection, before: Shared, after: Shared) -> None:
    fleet = after.fleet
    if fleet is not None and fleet != before.fleet:
        values = {**asdict(fleet), "mode": fleet.mode.value, "stage": fleet.stage.value}
        connection.execute((insert if before.fleet is None else change)(_FLEET).values(values))
    for id in _differing(before, after):
        if id not in after.members:
            connection.execute(delete(_MEMBERS).where(_MEMBERS.c.id == id))
        elif id not in before.members:
            connection.execute(insert(_MEMBERS).values(asdict(after.members[id])))
        else:
            statement = change(_MEMBERS).where(_MEMBERS.c.id == id)
            connection.execute(statement.values(asdict(after.members[id])))


def _differing(before: Shared, after: Shared) -> Iterable[str]:
    ids = before.members.keys() | after.members.keys()
    return [id for id in ids if before.members.get(id) != after.members.get(id)]
