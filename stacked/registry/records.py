"""What is kept, as frozen values: models, groups, histories, deployments, work requests.

They hold what the control plane shows, in our words. They must not know SQL or wire formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from stacked.registry.ids import now
from stacked.registry.states import (
    DeploymentState,
    GroupState,
    HistoryState,
    MemberState,
    ModelState,
    WorkStatus,
)

JsonObject = Mapping[str, Any]
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What every record has. Times are UTC; `reason` says why the state is what it is."""

    id: str
    display_name: str = ""
    reason: str = ""
    created_by: str = ""
    compartment_id: str = ""
    project_id: str = ""
    tags: JsonObject = field(default_factory=dict)
    time_created: datetime = field(default_factory=now)
    time_updated: datetime = field(default_factory=now)
    """When anything of it last changed; a record that is put in begins with `time_created`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Record):
    """A base or an adapter. Its content is (kind, digest), and never changes under one id.

    `bytes` is the size of its weights; `rank` is 0 for a base.
    """

    kind: str
    """`base` or `adapter`."""
    digest: str
    source: str = ""
    rank: int = 0
    bytes: int = 0
    state: ModelState = ModelState.ACTIVE
    extra: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One entry of a group. A group of the wire contract lists its base among them."""

    model_id: str
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGroup(Record):
    """A group; all but its names, tags and state is immutable.

    `version` counts within the version history and is given by the registry.
    """

    base_model_id: str
    members: tuple[GroupMember, ...] = ()
    description: str = ""
    custom_metadata: tuple[JsonObject, ...] = ()
    version_history_id: str | None = None
    version: int | None = None
    version_label: str = ""
    create_type: str = "CREATE"
    """`CREATE` or `CLONE`; a clone names the group it was made from."""
    source_group_id: str | None = None
    state: GroupState = GroupState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupModel:
    """A member of a group together with its model."""

    key: str | None
    model: Model


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionHistory(Record):
    """A line of groups. Its name is unique among those that are not deleted."""

    description: str = ""
    latest_group_id: str | None = None
    state: HistoryState = HistoryState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment(Record):
    """What is served. Only `Registry.commit_group` writes the last four fields."""

    description: str = ""
    configuration: JsonObject = field(default_factory=dict)
    """Base and engine settings, to compare an update against."""
    state: DeploymentState = DeploymentState.CREATING
    group_id: str | None = None
    """The committed group: what a restart serves."""
    generation: int = 0
    """Grows with every commit."""
    previous_group_id: str | None = None
    work_request_id: str | None = None
    """The work request whose group was committed last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedMember:
    """How one member of a group fared in a deployment."""

    model_id: str
    state: MemberState
    key: str | None = None
    reason: str = ""
    display_name: str = ""
    """The model's; read from its record, ignored when written."""
    project_id: str = ""
    """The model's; read from its record, ignored when written."""
    time_created: datetime = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class Affected:
    """What a work request acts on: `action` is UPDATED or alike, `entity` the kind of thing."""

    action: str
    entity: str
    id: str
    uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest:
    """One long piece of work. `percent` (0 to 100) never falls, and is 100 only on success."""

    id: str
    operation: str
    status: WorkStatus = WorkStatus.ACCEPTED
    percent: float = 0.0
    resources: tuple[Affected, ...] = ()
    compartment_id: str = ""
    time_accepted: datetime = field(default_factory=now)
    time_started: datetime | None = None
    time_finished: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLog:
    message: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkError:
    """Why a work request failed; `model_id` where one model is the reason."""

    code: str
    message: str
    model_id: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class Query:
    """How a list is read. `sort` and `descending` left out are the list's own defaults.

    `page` is a token that an earlier page of the same list gave, verbatim.
    """

    sort: str | None = None
    descending: bool | None = None
    limit: int = 100
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """A part of a list; `next` is the token of the part that follows, None at the end."""

    items: tuple[R, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a process that is gone had left in progress, by id."""

    failed: tuple[str, ...] = ()
    succeeded: tuple[str, ...] = ()
    """Work requests that were past their commit."""
