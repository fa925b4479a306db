"""The tables, and how Python values are stored in their columns.

Deleting a row deletes what is only about it (`ON DELETE CASCADE`); a reference without that
protects what it names.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from stacked.errors import RegistryUnusable
from stacked.registry.records import Affected
from stacked.registry.states import (
    DeploymentState,
    GroupState,
    HistoryState,
    MemberState,
    ModelState,
    WorkStatus,
)


class Stored(TypeDecorator[Any]):
    """Text written by `encode` and read by `decode`; None is NULL."""

    impl = Text
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


def _encode_time(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError(f"a time without a zone cannot be stored: {value!r}")
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _decode_time(value: str) -> datetime:
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def _json(name: str, shape: Callable[[Any], Any]) -> Stored:
    """JSON text; `shape` makes what the records hold of what was read."""
    encode = partial(json.dumps, allow_nan=False)
    return Stored(name, encode, lambda text: shape(json.loads(text)))


def _choice(kind: type[enum.Enum]) -> Stored:
    """One member of an enum, by its value."""
    return Stored(kind.__name__, lambda value: str(kind(value).value), kind)


# A UTC time with microseconds, of fixed width: it sorts as text.
MOMENT = Stored("a time", _encode_time, _decode_time)
OBJECT = _json("an object", dict)
LIST = _json("a list", tuple)
AFFECTED = Stored(
    "a list of resources",
    lambda value: json.dumps([asdict(item) for item in value]),
    lambda text: tuple(Affected(**item) for item in json.loads(text)),
)


def _key() -> Column[int]:
    """The row's number: rows with equal sort values stay in order of insertion."""
    return Column("seq", Integer, primary_key=True, autoincrement=True)


def _text(name: str, **more: Any) -> Column[str]:
    return Column(name, Text, nullable=False, **more)


def _maybe(name: str, target: str, **more: Any) -> Column[str | None]:
    return Column(name, Text, ForeignKey(target, **more), nullable=True)


def _part_of(name: str, owner: str) -> Column[str]:
    """The id of what the row is about, with which it is deleted."""
    return Column(name, Text, ForeignKey(owner, ondelete="CASCADE"), nullable=False)


def _is(name: str, target: str) -> Column[str]:
    return Column(name, Text, ForeignKey(target), nullable=False)


def _versions(name: str, *columns: Any) -> Table:
    """A table of names under which rows of another table are numbered."""
    return _record(
        name,
        HistoryState,
        _text("description"),
        # The highest number assigned: numbers of deleted versions are not reused.
        Column("last_version", Integer, nullable=False, default=0),
        *columns,
        Index(f"{name}_name", "display_name", unique=True, sqlite_where=text("state <> 'DELETED'")),
    )


def _record(name: str, states: type[enum.Enum], *columns: Any) -> Table:
    """The table of a kind of Record: the common columns and its own."""
    return Table(
        name,
        metadata,
        _key(),
        _text("id", unique=True),
        _text("display_name"),
        Column("state", _choice(states), nullable=False),
        _text("reason"),
        _text("created_by"),
        _text("compartment_id"),
        _text("project_id"),
        Column("tags", OBJECT, nullable=False),
        Column("time_created", MOMENT, nullable=False),
        Column("time_updated", MOMENT, nullable=False),
        *columns,
        *(Index(f"{name}_by_{by}", by) for by in ("time_created", "display_name", "state")),
    )


metadata = MetaData()

version_sets = _versions("model_version_sets")

models = _record(
    "models",
    ModelState,
    _text("kind"),
    _text("digest"),
    _text("source"),
    Column("rank", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("extra", OBJECT, nullable=False),
    _text("description"),
    _text("category"),
    _text("version_label"),
    _maybe("base_model_id", "models.id"),
    _maybe("version_set_id", "model_version_sets.id"),
    Column("version", Integer),
    Index("models_by_digest", "digest"),
    Index("models_by_base_model", "base_model_id"),
    Index("models_by_version_set", "version_set_id", "version", unique=True),
)

histories = _versions("version_histories", _maybe("latest_group_id", "model_groups.id"))

groups = _record(
    "model_groups",
    GroupState,
    _text("kind"),
    _text("description"),
    _maybe("base_model_id", "models.id"),
    Column("custom_metadata", LIST, nullable=False),
    _maybe("version_history_id", "version_histories.id"),
    Column("version", Integer),
    _text("version_label"),
    _text("create_type"),
    _maybe("source_group_id", "model_groups.id", ondelete="SET NULL"),
    UniqueConstraint("version_history_id", "version"),
    Index("model_groups_by_base_model", "base_model_id"),
    Index("model_groups_by_source_group", "source_group_id"),
)

group_members = Table(
    "group_members",
    metadata,
    _key(),
    _part_of("group_id", "model_groups.id"),
    Column("position", Integer, nullable=False),
    _is("model_id", "models.id"),
    Column("key", Text),
    UniqueConstraint("group_id", "position"),
    UniqueConstraint("group_id", "key"),
    Index("group_members_by_model", "model_id"),
)

artifacts = Table(
    "artifacts",
    metadata,
    _key(),
    _text("owner_id"),
    _text("part"),
    _text("sha256"),
    _text("md5"),
    Column("bytes", Integer, nullable=False),
    _text("name"),
    Column("time_created", MOMENT, nullable=False),
    UniqueConstraint("owner_id", "part"),
    Index("artifacts_by_sha256", "sha256"),
)

deployments = _record(
    "deployments",
    DeploymentState,
    _text("description"),
    Column("configuration", OBJECT, nullable=False),
    _maybe("group_id", "model_groups.id"),
    Column("generation", Integer, nullable=False),
    _maybe("previous_group_id", "model_groups.id"),
    _maybe("work_request_id", "work_requests.id"),
)

deployed_members = Table(
    "deployed_members",
    metadata,
    _key(),
    _part_of("deployment_id", "deployments.id"),
    _part_of("group_id", "model_groups.id"),
    Column("position", Integer, nullable=False),
    _is("model_id", "models.id"),
    Column("key", Text),
    Column("state", _choice(MemberState), nullable=False),
    _text("reason"),
    Column("time_created", MOMENT, nullable=False),
    UniqueConstraint("deployment_id", "group_id", "position"),
)

work_requests = Table(
    "work_requests",
    metadata,
    _key(),
    _text("id", unique=True),
    _text("operation"),
    Column("status", _choice(WorkStatus), nullable=False),
    Column("percent", Float, nullable=False),
    Column("resources", AFFECTED, nullable=False),
    _text("compartment_id"),
    Column("time_accepted", MOMENT, nullable=False),
    Column("time_started", MOMENT),
    Column("time_finished", MOMENT),
    Index("work_requests_by_time_accepted", "time_accepted"),
    Index("work_requests_by_status", "status"),
)

work_logs = Table(
    "work_logs",
    metadata,
    _key(),
    _part_of("work_request_id", "work_requests.id"),
    Column("step", Text),
    _text("message"),
    Column("time", MOMENT, nullable=False),
    Index("work_logs_by_request", "work_request_id"),
)

work_errors = Table(
    "work_errors",
    metadata,
    _key(),
    _part_of("work_request_id", "work_requests.id"),
    _text("code"),
    _text("message"),
    Column("model_id", Text),
    Column("time", MOMENT, nullable=False),
    Index("work_errors_by_request", "work_request_id"),
)

retry_tokens = Table(
    "retry_tokens",
    metadata,
    _key(),
    _text("principal"),
    _text("operation"),
    _text("token"),
    _text("payload"),
    Column("status", Integer),
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
    Column("requests", Integer, nullable=False),
    Column("errors", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("generated_tokens", Integer, nullable=False),
    UniqueConstraint("hour", "credential", "key"),
)
