"""What is stored, as frozen values: models, groups, histories, deployments, work requests."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from stacked.registry.states import (
    DeploymentState,
    GroupState,
    HistoryState,
    MemberState,
    ModelState,
    WorkStatus,
)

MODEL = "datasciencemodel"
GROUP = "datasciencemodelgroup"
HISTORY = "datasciencemodelgroupversionhistory"
VERSION_SET = "datasciencemodelversionset"
DEPLOYMENT = "datasciencemodeldeployment"
WORK_REQUEST = "datascienceworkrequest"

_KINDS = (MODEL, GROUP, HISTORY, VERSION_SET, DEPLOYMENT, WORK_REQUEST)

JsonObject = Mapping[str, Any]
R = TypeVar("R")


def new_id(kind: str) -> str:
    """A fresh OCID: `ocid1.<kind>.oc1..` and 40 random lower-case hex digits.

    A model from a source has no random id: its id is given, or follows from its content.
    """
    if kind not in _KINDS:
        raise ValueError(f"no ids of kind {kind!r} are made; one of {', '.join(_KINDS)}")
    return f"ocid1.{kind}.oc1..{uuid.uuid4().hex}{uuid.uuid4().hex[:8]}"


def now() -> datetime:
    """The time, in UTC, to the microsecond."""
    return datetime.now(UTC)


def _elsewhere(default: Any) -> Any:
    """A field that is read from another record, and ignored when written."""
    return field(default=default, metadata={"elsewhere": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The fields of every record. Times are UTC; `reason` explains the state."""

    id: str
    display_name: str = ""
    reason: str = ""
    created_by: str = ""
    compartment_id: str = ""
    project_id: str = ""
    tags: JsonObject = field(default_factory=dict)
    time_created: datetime = field(default_factory=now)
    time_updated: datetime = field(default_factory=now)
    """When anything of it last changed, initially `time_created`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Record):
    """A base, an adapter, a model that is neither, or one that has no content yet.

    Its content is (kind, digest); it never changes while a group has the model. `bytes` is the size
    of its weights; `rank` is 0 for all but adapters.
    """

    kind: str = ""
    """`base`, `adapter`, `model`, or empty without content."""
    digest: str = ""
    source: str = ""
    rank: int = 0
    bytes: int = 0
    state: ModelState = ModelState.ACTIVE
    extra: JsonObject = field(default_factory=dict)
    """Stored and returned unchanged: metadata, schemas, settings, provenance."""
    description: str = ""
    category: str = "USER"
    version_label: str = ""
    base_model_id: str | None = None
    """For an adapter: the base whose modules it was checked against."""
    version_set_id: str | None = None
    version_set_name: str | None = _elsewhere(None)
    """The set's."""
    version: int | None = None
    """The number within the version set, assigned by the registry."""

    @property
    def by_reference(self) -> bool:
        """Whether it is a base that was not uploaded, and is read in place."""
        return self.kind == "base" and bool(self.source)

    @property
    def metadata(self) -> dict[str, str]:
        """The values of its custom metadata, by name."""
        return _values(self.extra.get("custom_metadata", ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionSet(Record):
    """Models under one name, which is unique among the sets that are not deleted."""

    description: str = ""
    state: HistoryState = HistoryState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of a model, when it arrives."""

    kind: str
    digest: str
    bytes: int
    rank: int = 0
    base_model_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that was uploaded: which bytes, and under which name.

    `part` is empty for the artifact itself, otherwise the part of the owner that it belongs to.
    `sha256` and `md5` are in hex; the first is also the file's name.
    """

    owner_id: str
    part: str = ""
    sha256: str
    md5: str
    bytes: int
    name: str = ""
    time_created: datetime = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One entry of a group. A group of the wire contract lists its base among them."""

    model_id: str
    key: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary(Record):
    """A group without its members, of which there may be hundreds.

    All but its names, tags and state is immutable. `version` counts within the version history and
    is given by the registry.
    """

    kind: str = "STACKED"
    """`STACKED`, `HOMOGENEOUS` or `HETEROGENEOUS`."""
    base_model_id: str | None = None
    """The base of a STACKED group; other kinds have none."""
    description: str = ""
    custom_metadata: tuple[JsonObject, ...] = ()
    version_history_id: str | None = None
    version_history_name: str | None = _elsewhere(None)
    """The history's."""
    version: int | None = None
    version_label: str = ""
    create_type: str = "CREATE"
    """`CREATE` or `CLONE`; a clone names the group it was made from."""
    source_group_id: str | None = None
    state: GroupState = GroupState.ACTIVE

    @property
    def metadata(self) -> dict[str, str]:
        """The values of its custom metadata, by name."""
        return _values(self.custom_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord(GroupSummary):
    """A group with its members, in their order."""

    members: tuple[GroupMember, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupModel:
    """A member of a group together with its model."""

    member: GroupMember
    model: Model


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionHistory(Record):
    """A line of groups. Its name is unique among those that are not deleted."""

    description: str = ""
    latest_group_id: str | None = None
    state: HistoryState = HistoryState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment(Record):
    """What is served. Only `deployments.commit` writes the last four fields."""

    description: str = ""
    configuration: JsonObject = field(default_factory=dict)
    """Base and engine settings, to compare an update against."""
    state: DeploymentState = DeploymentState.CREATING
    group_id: str | None = None
    """The committed group, which a restart serves."""
    generation: int = 0
    """Grows with every commit."""
    previous_group_id: str | None = None
    work_request_id: str | None = None
    """The work request whose group was committed last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedMember:
    """The state of one member of a group in a deployment."""

    model_id: str
    state: MemberState
    key: str | None = None
    reason: str = ""
    display_name: str = _elsewhere("")
    """The model's."""
    project_id: str = _elsewhere("")
    """The model's."""
    time_created: datetime = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class Affected:
    """What a work request acts on: `action` is UPDATED or similar, `entity` a kind of record."""

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
    """A line about a work request; `step` is the name of the step that it reports, if any."""

    step: str | None
    message: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkError:
    """Why a work request failed; `model_id` if one model is the reason."""

    code: str
    message: str
    model_id: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class Query:
    """How a list is read. Without `sort` and `descending`, the list's own defaults apply.

    `page` is a token from an earlier page of the same list, verbatim.
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
    """What a process that ended had left in progress, by id."""

    failed: tuple[str, ...] = ()
    succeeded: tuple[str, ...] = ()
    """Work requests that were past their commit."""


def _values(items: Iterable[JsonObject]) -> dict[str, str]:
    return {str(item.get("key")): str(item.get("value")) for item in items}
