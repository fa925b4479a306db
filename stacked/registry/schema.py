"""The tables as the queries see them, and how Python values stand in their columns.

What makes the tables is in `migrations.py`; a test compares the two. It must not know any rule.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

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

T = TypeVar("T")


class Stored(TypeDecorator[Any]):
    """Text that is written by `encode` and read by `decode`; None is NULL."""

    impl = Text
    cache_ok = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name  # part of SQLAlchemy's cache key

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

    def encode(self, value: Any) -> str:
        raise NotImplementedError

    def decode(self, value: str) -> Any:
        raise NotImplementedError


class Moment(Stored):
    """A UTC time with microseconds, of fixed width: it sorts as text."""

    cache_ok = True

    def __init__(self) -> None:
        super().__init__("a time")

    def encode(self, value: datetime) -> str:
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be kept: {value!r}")
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def decode(self, value: str) -> datetime:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


class Choice(Stored):
    """One member of an enum, by its value."""

    cache_ok = True

    def __init__(self, kind: type[enum.Enum]) -> None:
        super().__init__(kind.__name__)
        self.kind = kind

    def encode(self, value: enum.Enum) -> str:
        return str(self.kind(value).value)

    def decode(self, value: str) -> enum.Enum:
        return self.kind(value)


class Json(Stored):
    """JSON text; `shape` makes what the records hold of what was read."""

    cache_ok = True

    def __init__(self, name: str, shape: Callable[[Any], Any]) -> None:
        super().__init__(name)
        self.shape = shape

    def encode(self, value: Any) -> str:
        return json.dumps(value, allow_nan=False)

    def decode(self, value: str) -> Any:
        return self.shape(json.loads(value))


class AffectedList(Stored):
    cache_ok = True

    def __init__(self) -> None:
        super().__init__("a list of resources")

    def encode(self, value: tuple[Affected, ...]) -> str:
        return json.dumps([asdict(item) for item in value])

    def decode(self, value: str) -> tuple[Affected, ...]:
        return tuple(Affected(**item) for item in json.loads(value))


def _object() -> Json:
    return Json("an object", dict)


def _key() -> Column[int]:
    """The row's number: rows that are equal in what sorts them stay in the order they came."""
    return Column("seq", Integer, primary_key=True, autoincrement=True)


def _text(name: str, **more: Any) -> Column[str]:
    return Column(name, Text, nullable=False, **more)


def _maybe(name: str, target: str) -> Column[str | None]:
    return Column(name, Text, ForeignKey(target), nullable=True)


def _record(name: str, states: type[enum.Enum], *columns: Any) -> Table:
    """A table of a kind of Record: what all have, and what it has of its own."""
    return Table(
        name,
        metadata,
        _key(),
        _text("id", unique=True),
        _text("display_name"),
        Column("state", Choice(states), nullable=False),
        _text("reason"),
        _text("created_by"),
        _text("compartment_id"),
        _text("project_id"),
        Column("tags", _object(), nullable=False),
        Column("time_created", Moment(), nullable=False),
        Column("time_updated", Moment(), nullable=False),
        *columns,
        *(Index(f"{name}_by_{by}", by) for by in ("time_created", "display_name", "state")),
    )


metadata = MetaData()

version_sets = _record(
    "model_version_sets",
    HistoryState,
    _text("description"),
    Index(
        "model_version_sets_name",
        "display_name",
        unique=True,
        sqlite_where=text("state <> 'DELETED'"),
    ),
)

models = _record(
    "models",
    ModelState,
    _text("kind"),
    _text("digest"),
    _text("source"),
    Column("rank", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("extra", _object(), nullable=False),
    _text("description"),
    _text("category"),
    _text("version_label"),
    _maybe("base_model_id", "models.id"),
    _maybe("version_set_id", "model_version_sets.id"),
    Column("version", Integer),
    Index("models_by_digest", "digest"),
    Index("models_by_version_set", "version_set_id", "version", unique=True),
)

histories = _record(
    "version_histories",
    HistoryState,
    _text("description"),
    _maybe("latest_group_id", "model_groups.id"),
    Index(
        "version_histories_name",
        "display_name",
        unique=True,
        sqlite_where=text("state <> 'DELETED'"),
    ),
)

groups = _record(
    "model_groups",
    GroupState,
    _text("kind"),
    _text("description"),
    _maybe("base_model_id", "models.id"),
    Column("custom_metadata", Json("a list", tuple), nullable=False),
    _maybe("version_history_id", "version_histories.id"),
    Column("version", Integer),
    _text("version_label"),
    _text("create_type"),
    _maybe("source_group_id", "model_groups.id"),
    UniqueConstraint("version_history_id", "version"),
)

group_members = Table(
    "group_members",
    metadata,
    _key(),
    Column("group_id", Text, ForeignKey("model_groups.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("model_id", Text, ForeignKey("models.id"), nullable=False),
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
    Column("time_created", Moment(), nullable=False),
    UniqueConstraint("owner_id", "part"),
    Index("artifacts_by_sha256", "sha256"),
)

deployments = _record(
    "deployments",
    DeploymentState,
    _text("description"),
    Column("configuration", _object(), nullable=False),
    _maybe("group_id", "model_groups.id"),
    Column("generation", Integer, nullable=False),
    _maybe("previous_group_id", "model_groups.id"),
    _maybe("work_request_id", "work_requests.id"),
)

deployed_members = Table(
    "deployed_members",
    metadata,
    _key(),
    Column("deployment_id", Text, ForeignKey("deployments.id"), nullable=False),
    Column("group_id", Text, ForeignKey("model_groups.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("model_id", Text, ForeignKey("models.id"), nullable=False),
    Column("key", Text),
    Column("state", Choice(MemberState), nullable=False),
    _text("reason"),
    Column("time_created", Moment(), nullable=False),
    UniqueConstraint("deployment_id", "group_id", "position"),
)

work_requests = Table(
    "work_requests",
    metadata,
    _key(),
    _text("id", unique=True),
    _text("operation"),
    Column("status", Choice(WorkStatus), nullable=False),
    Column("percent", Float, nullable=False),
    Column("resources", AffectedList(), nullable=False),
    _text("compartment_id"),
    Column("time_accepted", Moment(), nullable=False),
    Column("time_started", Moment()),
    Column("time_finished", Moment()),
    Index("work_requests_by_time_accepted", "time_accepted"),
    Index("work_requests_by_status", "status"),
)

work_logs = Table(
    "work_logs",
    metadata,
    _key(),
    Column("work_request_id", Text, ForeignKey("work_requests.id"), nullable=False),
    _text("message"),
    Column("time", Moment(), nullable=False),
    Index("work_logs_by_request", "work_request_id"),
)

work_errors = Table(
    "work_errors",
    metadata,
    _key(),
    Column("work_request_id", Text, ForeignKey("work_requests.id"), nullable=False),
    _text("code"),
    _text("message"),
    Column("model_id", Text),
    Column("time", Moment(), nullable=False),
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
    Column("headers", _object(), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("time_created", Moment(), nullable=False),
    UniqueConstraint("principal", "operation", "token"),
    Index("retry_tokens_by_time_created", "time_created"),
)
