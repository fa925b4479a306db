"""The tables, whose columns are the fields of records, and how Python values are stored in them.

Deleting a row deletes what is only about it (`ON DELETE CASCADE`); a reference without that
protects what it names.

The same tables stand in SQLite and in PostgreSQL: columns are of the types named here (`TEXT`,
`INTEGER`, `Float`, `LargeBinary`, `Stored`), queries are SQLAlchemy's own, an insert that may meet
its row is `upsert`, and the sum of integers is `total`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    cast,
    func,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from stacked.errors import RegistryUnusable
from stacked.registry.records import (
    Affected,
    Artifact,
    DeployedMember,
    Deployment,
    GroupMember,
    GroupSummary,
    JsonObject,
    Model,
    ModelVersionSet,
    VersionHistory,
    WorkError,
    WorkLog,
    WorkRequest,
)

# Sorted by bytes, whatever the order of the database: pages begin after a value.
TEXT = Text().with_variant(Text(collation="C"), "postgresql")
# 64 bits; SQLite numbers rows by itself in a column of this one type.
INTEGER = BigInteger().with_variant(Integer, "sqlite")


class Stored(TypeDecorator[Any]):
    """Text written by `encode` and read by `decode`; None is NULL."""

    impl = TEXT
    cache_ok = True

    def __init__(
        self, name: str, encode: Callable[[Any], str], decode: Callable[[str], Any]
    ) -> None:
        super().__init__()
        # Under the names of the arguments: they are SQLAlchemy's cache key.
        self.name, self.encode, self.decode = name, encode, decode

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else self.encode(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        if value is None:
            return None
        try:
            return self.decode(value)
        except (ValueError, TypeError, KeyError) as error:
            raise RegistryUnusable(
                f"a stored value cannot be read ({value!r:.80} as {self.name}); "
                "restore the file from a copy"
            ) from error


_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def _encode_time(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError(f"a time without a zone cannot be stored: {value!r}")
    return value.astimezone(UTC).strftime(_TIME)


def _json(name: str, shape: Callable[[Any], Any]) -> Stored:
    """JSON text; `shape` makes what the records hold of what was read."""
    encode = partial(json.dumps, allow_nan=False)
    return Stored(name, encode, lambda text: shape(json.loads(text)))


def _choice(kind: type[enum.Enum]) -> Stored:
    """One member of an enum, by its value."""
    return Stored(kind.__name__, lambda value: str(kind(value).value), kind)


# A UTC time with microseconds, of fixed width: it sorts as text.
MOMENT = Stored(
    "a time", _encode_time, lambda text: datetime.strptime(text, _TIME).replace(tzinfo=UTC)
)
OBJECT = _json("an object", dict)
LIST = _json("a list", tuple)
AFFECTED = Stored(
    "a list of resources",
    lambda value: json.dumps([asdict(item) for item in value]),
    lambda text: tuple(Affected(**item) for item in json.loads(text)),
)


def _key() -> Column[int]:
    """The row's number: rows with equal sort values stay in order of insertion."""
    return Column("seq", INTEGER, primary_key=True, autoincrement=True)


def _text(name: str) -> Column[str]:
    return Column(name, TEXT, nullable=False)


def _part_of(name: str, owner: str) -> Column[str]:
    """The id of what the row is about, with which it is deleted."""
    return Column(name, TEXT, ForeignKey(owner, ondelete="CASCADE"), nullable=False)


# The stored form of a field, by its type.
_FORMS: Mapping[Any, Any] = {
    str: TEXT,
    int: INTEGER,
    float: Float,
    datetime: MOMENT,
    JsonObject: OBJECT,
    tuple[JsonObject, ...]: LIST,
    tuple[Affected, ...]: AFFECTED,
}


def _table(name: str, record: type, *more: Any, **keys: str | ForeignKey) -> Table:
    """The table of a kind of record: a column for each of its fields, and `more`.

    `keys` are the fields that name other rows. What a record reads from one is marked `elsewhere`.
    """
    columns = []
    types = get_type_hints(record)
    for field in fields(record):
        one = types[field.name]
        several = get_args(one) if isinstance(one, UnionType) else (one,)
        form = _FORMS[several[0]] if several[0] in _FORMS else _choice(several[0])
        key = keys.get(field.name)
        keyed = [] if key is None else [ForeignKey(key) if isinstance(key, str) else key]
        if not field.metadata.get("elsewhere"):
            only = True if field.name == "id" else None
            columns.append(
                Column(field.name, form, *keyed, nullable=NoneType in several, unique=only)
            )
    return Table(name, metadata, _key(), *columns, *more)


def _listed(name: str, record: type, *more: Any, **keys: str | ForeignKey) -> Table:
    """The table of a kind of Record, with what lists are sorted by."""
    indexes = (Index(f"{name}_by_{by}", by) for by in ("time_created", "display_name", "state"))
    return _table(name, record, *more, *indexes, **keys)


_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_THERE = text("state <> 'DELETED'")


def _versions(name: str, record: type, **keys: str) -> Table:
    """A table of names under which rows of another table are numbered."""
    return _listed(
        name,
        record,
        # The highest number assigned: numbers of deleted versions are not reused.
        Column("last_version", INTEGER, nullable=False, default=0),
        Index(
            f"{name}_name",
            "display_name",
            unique=True,
            sqlite_where=_THERE,
            postgresql_where=_THERE,
        ),
        **keys,
    )


metadata = MetaData()

version_sets = _versions("model_version_sets", ModelVersionSet)

models = _listed(
    "models",
    Model,
    Index("models_by_digest", "digest"),
    Index("models_by_base_model", "base_model_id"),
    Index("models_by_version_set", "version_set_id", "version", unique=True),
    base_model_id="models.id",
    version_set_id="model_version_sets.id",
)

histories = _versions("version_histories", VersionHistory, latest_group_id="model_groups.id")

groups = _listed(
    "model_groups",
    GroupSummary,
    UniqueConstraint("version_history_id", "version"),
    Index("model_groups_by_base_model", "base_model_id"),
    Index("model_groups_by_source_group", "source_group_id"),
    base_model_id="models.id",
    version_history_id="version_histories.id",
    source_group_id=ForeignKey("model_groups.id", ondelete="SET NULL"),
)

group_members = _table(
    "group_members",
    GroupMember,
    _part_of("group_id", "model_groups.id"),
    Column("position", INTEGER, nullable=False),
    UniqueConstraint("group_id", "position"),
    UniqueConstraint("group_id", "key"),
    Index("group_members_by_model", "model_id"),
    model_id="models.id",
)

artifacts = _table(
    "artifacts",
    Artifact,
    UniqueConstraint("owner_id", "part"),
    Index("artifacts_by_sha256", "sha256"),
)

deployments = _listed(
    "deployments",
    Deployment,
    group_id="model_groups.id",
    previous_group_id="model_groups.id",
    work_request_id="work_requests.id",
)

deployed_members = _table(
    "deployed_members",
    DeployedMember,
    _part_of("deployment_id", "deployments.id"),
    _part_of("group_id", "model_groups.id"),
    Column("position", INTEGER, nullable=False),
    UniqueConstraint("deployment_id", "group_id", "position"),
    model_id="models.id",
)

work_requests = _table(
    "work_requests",
    WorkRequest,
    # The number of the process that works on it, among those that share the records.
    Column("process", INTEGER, nullable=False, default=0),
    Index("work_requests_by_time_accepted", "time_accepted"),
    Index("work_requests_by_status", "status"),
)

work_logs = _table(
    "work_logs",
    WorkLog,
    _part_of("work_request_id", "work_requests.id"),
    Index("work_logs_by_request", "work_request_id"),
)

work_errors = _table(
    "work_errors",
    WorkError,
    _part_of("work_request_id", "work_requests.id"),
    Index("work_errors_by_request", "work_request_id"),
)

retry_tokens = Table(
    "retry_tokens",
    metadata,
    _key(),
    *(
        Column(name, TEXT, nullable=False)
        for name in ("principal", "operation", "token", "payload")
    ),
    Column("status", INTEGER),
    Column("headers", OBJECT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("time_created", MOMENT, nullable=False),
    UniqueConstraint("principal", "operation", "token"),
    Index("retry_tokens_by_time_created", "time_created"),
)

usage = Table(
    "usage",
    metadata,
    _key(),
    Column("hour", MOMENT, nullable=False),
    _text("credential"),
    _text("key"),
    Column("requests", INTEGER, nullable=False),
    Column("errors", INTEGER, nullable=False),
    Column("prompt_tokens", INTEGER, nullable=False),
    Column("generated_tokens", INTEGER, nullable=False),
    UniqueConstraint("hour", "credential", "key"),
)

experiment_phases = Table(
    "experiment_phases",
    metadata,
    _key(),
    _text("experiment"),
    _text("phase"),
    Column("began", MOMENT, nullable=False),
    Column("last", MOMENT, nullable=False),
    Column("arms", LIST, nullable=False),
    Column("drawn", INTEGER, nullable=False),
    Column("dropped", INTEGER, nullable=False),
    Column("metrics", OBJECT, nullable=False),
    UniqueConstraint("experiment", "phase"),
)


def _id() -> Column[int]:
    """A number that was made of a name."""
    return Column("id", INTEGER, primary_key=True, autoincrement=False)


def _owned(name: str, owner: str) -> Column[int]:
    """The number of what the row is about, with which it is deleted."""
    return Column(name, INTEGER, ForeignKey(owner, ondelete="CASCADE"), nullable=False)


experiment_units = Table(
    "experiment_units",
    metadata,
    _id(),
    _owned("phase", "experiment_phases.seq"),
    _text("arm"),
    Column("answers", INTEGER, nullable=False),
    Column("failed", INTEGER, nullable=False),
    Column("whole", INTEGER, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("first_seconds", Float, nullable=False),
    Column("output_tokens", INTEGER, nullable=False),
    Column("cut", INTEGER, nullable=False),
    Index("experiment_units_by_phase", "phase"),
)

experiment_values = Table(
    "experiment_values",
    metadata,
    _owned("unit", "experiment_units.id"),
    _text("metric"),
    Column("count", INTEGER, nullable=False),
    Column("total", Float, nullable=False),
    PrimaryKeyConstraint("unit", "metric"),
    sqlite_with_rowid=False,
)

experiment_answers = Table(
    "experiment_answers",
    metadata,
    _id(),
    # No reference: rows are added by thousands, and expire before those of units.
    Column("unit", INTEGER, nullable=False),
    Column("hour", INTEGER, nullable=False),
    Index("experiment_answers_by_hour", "hour"),
)

experiment_feedback = Table(
    "experiment_feedback",
    metadata,
    _owned("answer", "experiment_answers.id"),
    _text("metric"),
    Column("value", Float, nullable=False),
    PrimaryKeyConstraint("answer", "metric"),
    sqlite_with_rowid=False,
)


def upsert(
    connection: Connection,
    table: Table,
    keys: Sequence[str],
    *,
    put: Collection[str] = (),
    add: Collection[str] = (),
) -> Insert:
    """An insert. Of a row of the same keys that is there, columns are put anew or added to.

    Without any, that row stays.
    """
    new: Any = _INSERT[connection.dialect.name](table)
    changed = {name: new.excluded[name] for name in put}
    changed |= {name: table.c[name] + new.excluded[name] for name in add}
    insert: Insert = (
        new.on_conflict_do_update(index_elements=keys, set_=changed)
        if changed
        else new.on_conflict_do_nothing(index_elements=keys)
    )
    return insert


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """The sum; PostgreSQL's is a decimal."""
    return cast(func.sum(column), INTEGER)
