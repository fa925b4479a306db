"""What the replicas of one fleet share, in a schema of PostgreSQL or a SQLite file of one machine.

Each operation is one transaction of `stacked.fleet.shared.apply`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Integer,
    MetaData,
    RowMapping,
    Select,
    Table,
    Text,
    delete,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy import update as change

from stacked.errors import DataDirInUse
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
from stacked.registry.database import Database
from stacked.registry.postgresql import Shared as Schema

# Of an operation, which takes milliseconds: a replica without a database has a lease to lose.
_SECONDS = 1.0
# Of committed updates: so many may follow one before the process that ran it hears of that.
_COMMITS = 1000

_TABLES = MetaData()
_FLEET = Table(
    "fleet",
    _TABLES,
    # The claim of the records that its replicas share. One of an earlier claim is a fleet no more:
    # a server alone may have changed what is committed.
    Column("owner", BigInteger, nullable=False),
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
    # Its number among those that have claimed the records.
    Column("process", BigInteger, nullable=False),
    # By the database's clock: the protocol compares no two clocks.
    Column("reported", DateTime(timezone=True), nullable=False),
    # Not part of a report, which is written every second: a generation, and its models that the
    # member does not serve, with the reasons.
    Column("lacking", Text, nullable=False, default="[0, {}]"),
)

_COMMITTED = Table(
    "committed",
    _TABLES,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("proposal", Text, nullable=False),
)


def last_fleet(connection: Connection, schema: str | None) -> Fleet | None:
    """The row of the fleet that had the records in this schema last, if any did."""
    rows = _rows(connection, schema, select(_FLEET))
    return _fleet(rows[0]) if rows else None


def last_committed(connection: Connection, schema: str | None) -> frozenset[str]:
    """The newest updates that were committed by the fleets that have had the records."""
    rows = _rows(connection, schema, select(_COMMITTED))
    return frozenset(row["proposal"] for row in rows)


def reporting(connection: Connection, schema: str | None, seconds: float) -> frozenset[int]:
    """The numbers of the processes of members that have reported within so many seconds."""
    columns = (_MEMBERS.c.process, _MEMBERS.c.reported, func.now().label("now"))
    rows = _rows(connection, schema, select(*columns))
    recent = timedelta(seconds=seconds)
    return frozenset(row["process"] for row in rows if row["now"] - row["reported"] <= recent)


def _rows(connection: Connection, schema: str | None, query: Select[Any]) -> Sequence[RowMapping]:
    place = f"fleet_{schema}"
    if schema is None or not inspect(connection).has_table(_FLEET.name, place):
        return ()
    there = {"schema_translate_map": {None: place}}
    return connection.execute(query, execution_options=there).mappings().all()


class Seen(NamedTuple):
    """A fleet as it is stored, for people who look at it."""

    shared: Shared
    ago: Mapping[str, float]
    """How many seconds ago each member has reported, by its id."""
    lacking: Mapping[str, Mapping[str, str]]
    """The models of the committed group that a member does not serve, and why, by its id."""


def fleet_of(registry: Schema) -> Schema:
    """The schema of the fleet whose records are in that one."""
    # A registry's begins otherwise, so that no group's is this one, and has 57 of 63 letters.
    return replace(
        registry, schema=f"fleet_{registry.schema}", connections=3, silent_seconds=_SECONDS
    )


class FleetStore:
    """One fleet's rows. Every method blocks, may be called from any thread, and raises
    RegistryUnusable, or DataDirInUse where another fleet has taken the records over.
    """

    def __init__(
        self,
        where: Path | Schema,
        busy_seconds: float = _SECONDS,
        owner: int = 0,
        process: int = 0,
    ) -> None:
        """The numbers of the claim of the fleet's records, and of this process in it."""
        self._database = Database(where, busy_seconds, (), _TABLES)
        self._owner, self._process = owner, process

    def carry_out(self, id: str, operation: Operation) -> View:
        """Do it for the replica with this id, whose every Beat is; what that sees then."""
        looks = isinstance(operation, Look)
        with self._database.read() if looks else self._database.write() as connection:
            before = self._read(connection, id, operation)
            after = apply(before, operation)
            self._write(connection, before, after)
        return View.of(after, id)

    def seen(self) -> Seen:
        """Everything."""
        with self._database.read() as connection:
            shared = self._read(connection, "", None)
            columns = (_MEMBERS.c.id, _MEMBERS.c.reported, _MEMBERS.c.lacking, func.now())
            rows = connection.execute(select(*columns).where(_MEMBERS.c.id.in_([*shared.members])))
        committed = shared.fleet.generation if shared.fleet else 0
        ago, lacking = {}, {}
        for id, then, text, now in rows:
            ago[id] = (now - then).total_seconds()
            generation, models = json.loads(text)
            lacking[id] = models if generation == committed else {}
        return Seen(shared, ago, lacking)

    def put_lacking(self, id: str, generation: int, models: Mapping[str, str]) -> None:
        """What a member does not serve of a generation: model id -> why."""
        text = json.dumps([generation, dict(models)])
        with self._database.write() as connection:
            connection.execute(change(_MEMBERS).where(_MEMBERS.c.id == id).values(lacking=text))

    def happened(self, proposal: str) -> bool:
        """Whether an update of the newest thousand was committed."""
        query = select(_COMMITTED).where(_COMMITTED.c.proposal == proposal)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def set_mode(self, mode: Mode) -> None:
        """For the first server of a fleet that begins again, unless an update is under way."""
        with self._database.write() as connection:
            before = self._read(connection, "", None)
            if before.fleet is not None and before.fleet.at_rest:
                fleet = replace(before.fleet, mode=mode)
                self._write(connection, before, replace(before, fleet=fleet))

    def close(self) -> None:
        self._database.close()

    def _read(self, connection: Connection, id: str, operation: Operation | None) -> Shared:
        """What the operation and its view need: of many members mostly two."""
        row = connection.execute(select(_FLEET)).mappings().one_or_none()
        if row is None or row["owner"] < self._owner:
            return Shared()
        if row["owner"] > self._owner:
            raise DataDirInUse(
                "other processes have used the records of this fleet while this one had lost "
                "them; restart this one"
            )
        fleet = _fleet(row)
        query = select(*(_MEMBERS.c[field.name] for field in fields(Report)))
        leads = fleet.coordinator == id and not fleet.at_rest
        if isinstance(operation, Look | Beat) and not leads:
            query = query.where(_MEMBERS.c.id.in_((id, fleet.coordinator)))
        found = (Report(*row) for row in connection.execute(query))
        return Shared(fleet, {report.id: report for report in found})

    def _write(self, connection: Connection, before: Shared, after: Shared) -> None:
        fleet = after.fleet
        if fleet is not None and fleet != before.fleet:
            values = {**asdict(fleet), "mode": fleet.mode.value, "stage": fleet.stage.value}
            if before.fleet is None:
                for table in _TABLES.tables.values():
                    connection.execute(delete(table))
                connection.execute(insert(_FLEET).values(owner=self._owner, **values))
            else:
                connection.execute(change(_FLEET).values(values))
            if before.fleet is not None and fleet.generation > before.fleet.generation:
                made = {"generation": fleet.generation, "proposal": fleet.proposal}
                connection.execute(insert(_COMMITTED).values(made))
                old = _COMMITTED.c.generation <= fleet.generation - _COMMITS
                connection.execute(delete(_COMMITTED).where(old))
        for id in _differing(before, after):
            if id not in after.members:
                connection.execute(delete(_MEMBERS).where(_MEMBERS.c.id == id))
                continue
            values = {**asdict(after.members[id]), "reported": func.now()}
            if id not in before.members:
                connection.execute(insert(_MEMBERS).values(process=self._process, **values))
            else:
                connection.execute(change(_MEMBERS).where(_MEMBERS.c.id == id).values(values))


def _fleet(row: RowMapping) -> Fleet:
    stored = {field.name: row[field.name] for field in fields(Fleet)}
    return Fleet(**stored | {"mode": Mode(row["mode"]), "stage": Stage(row["stage"])})


def _differing(before: Shared, after: Shared) -> Iterable[str]:
    ids = before.members.keys() | after.members.keys()
    return [id for id in ids if before.members.get(id) != after.members.get(id)]
