"""Model groups: `/20190101/modelGroups`, and their members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fastapi import Body, Query, Response
from pydantic import Field

from stacked.api.control.base import (
    ChangeCompartment,
    Created,
    Description,
    EmptyAsNull,
    HeadQuery,
    Json,
    ListQuery,
    RequestModel,
    ResponseModel,
    StatefulResource,
    Text,
    Updated,
)
from stacked.api.control.calls import (
    Action,
    Change,
    Create,
    Read,
    Update,
    bare,
    done,
    finished,
    resource_router,
    success,
)
from stacked.api.control.models import ModelOutline
from stacked.config import Key, Ocid
from stacked.core import MAX_WEIGHT, MIN_WEIGHT
from stacked.errors import GroupInvalid, ParameterInvalid, RecordConflict
from stacked.registry import GROUP, new_id, records
from stacked.registry.records import GroupMember, GroupModel, Record
from stacked.registry.states import GroupState, ModelState
from stacked.service import Service

# Terraform's provider looks for a part of the first; OCI's other kinds have no hyphens here.
_KIND = ("data-science-model-group", "modelGroups")

router = resource_router("/modelGroups", "Model groups")

Type = Literal["STACKED", "HOMOGENEOUS", "HETEROGENEOUS"]


class GroupQuery(HeadQuery):
    version_history_id: str | None = Field(None, alias="modelGroupVersionHistoryId")
    state: GroupState | None = Field(None, alias="lifecycleState")


class MemberQuery(ListQuery):
    sort_by: Literal["timeCreated", "displayName", "lifecycleState"] | None = None
    id: str | None = None
    display_name: str | None = None
    created_by: str | None = None
    key: str | None = Field(None, alias="inferenceKey")
    state: ModelState | None = Field(None, alias="lifecycleState")


class MemberDetails(RequestModel):
    """A member: its model id and, if it has one, its inference key; ours alone: its weight."""

    model_id: Ocid
    inference_key: Key | None = None
    weight: float = Field(default=1.0, ge=MIN_WEIGHT, le=MAX_WEIGHT)

    def member(self) -> GroupMember:
        return GroupMember(self.model_id, self.inference_key, self.weight)


class MemberEntries(RequestModel):
    member_model_details: list[MemberDetails]

    def members(self) -> tuple[GroupMember, ...]:
        return tuple(item.member() for item in self.member_model_details)


class MetadataItem(RequestModel):
    """One entry of a group's metadata."""

    key: Text = ""
    value: Text = ""
    description: str | None = None
    category: str | None = None


class GroupDetails(RequestModel):
    type: Type
    base_model_id: str | None = None
    custom_metadata_list: list[MetadataItem] | None = None

    def base(self) -> str | None:
        """The base of a STACKED group, None for other kinds. Raises ParameterInvalid."""
        if self.type != "STACKED":
            return None
        if not self.base_model_id:
            raise ParameterInvalid("modelGroupDetails.baseModelId is missing; it names the base")
        return self.base_model_id

    def metadata(self) -> tuple[Json, ...] | None:
        items = self.custom_metadata_list
        if items is None:
            return None
        return tuple(item.model_dump(by_alias=True, exclude_none=True) for item in items)

    def check_same_kind(self, origin: records.GroupRecord) -> None:
        """Raises GroupInvalid if a clone has another kind or base than its source."""
        if self.type != origin.kind:
            raise GroupInvalid(f"a clone is of its source's type {origin.kind}, not {self.type}")
        if self.base_model_id not in (None, "", origin.base_model_id):
            raise GroupInvalid(
                f"a clone has its source's base {origin.base_model_id}; create a group for "
                "another one"
            )


class _Labels(Created):
    description: Description = ""
    version_label: Text = ""
    model_group_version_history_id: str | None = None


class CreateGroup(_Labels):
    create_type: Literal["CREATE"]
    model_group_details: GroupDetails
    member_model_entries: MemberEntries

    def group(self, service: Service, created_by: str) -> records.GroupRecord:
        return records.GroupRecord(
            **self.head(created_by, "modelgroup"),
            id=new_id(GROUP),
            description=self.description,
            kind=self.model_group_details.type,
            base_model_id=self.model_group_details.base(),
            members=self.member_model_entries.members(),
            custom_metadata=self.model_group_details.metadata() or (),
            version_history_id=self.model_group_version_history_id or None,
            version_label=self.version_label,
        )


class Patch(RequestModel):
    operation: Literal["INSERT", "REMOVE"]
    values: list[MemberDetails]


class Patches(RequestModel):
    items: tuple[Patch, ...] = ()

    def applied(self, members: Sequence[GroupMember]) -> tuple[GroupMember, ...]:
        """The members of a clone. Raises GroupInvalid.

        REMOVE without a key takes out every entry of the model. Removals come first, so that a key
        can move to another model in one request.
        """
        left = list(members)
        for value in self._values("REMOVE"):
            id, key = value.model_id, value.inference_key
            gone = [one for one in left if one.model_id == id and key in (None, one.key)]
            if not gone:
                what = f" under key {key!r}" if key else ""
                raise GroupInvalid(f"REMOVE: model {id} is not in the group{what}")
            left = [member for member in left if member not in gone]
        return (*left, *(value.member() for value in self._values("INSERT")))

    def _values(self, operation: str) -> list[MemberDetails]:
        return [one for patch in self.items if patch.operation == operation for one in patch.values]


class Modified(_Labels):
    """The fields of a clone that differ from its source."""

    model_group_details: GroupDetails | None = None


class CloneSource(RequestModel):
    model_group_clone_source_type: Literal["MODEL_GROUP", "MODEL_GROUP_VERSION_HISTORY"]
    source_id: Annotated[str, Field(min_length=1)]
    modify_model_group_details: Modified | None = None
    patch_model_group_member_model_details: Patches | None = None

    def origin(self, service: Service) -> tuple[records.GroupRecord, str | None]:
        """The group to clone, and the version history it was found by. Raises RecordConflict."""
        id, history = self.source_id, None
        if self.model_group_clone_source_type == "MODEL_GROUP_VERSION_HISTORY":
            history = id
            latest = service.registry.histories.get(history).latest_group_id
            if latest is None:
                raise RecordConflict(f"version history {history} has no model group to clone")
            id = latest
        group = service.registry.groups.get(id)
        if group.state is GroupState.DELETED:
            raise RecordConflict(f"model group {id} is deleted, and cannot be cloned")
        return group, history


class CloneGroup(RequestModel):
    create_type: Literal["CLONE"]
    compartment_id: Text = ""
    project_id: Text = ""
    model_group_clone_source_details: CloneSource

    def group(self, service: Service, created_by: str) -> records.GroupRecord:
        """The source with its modifications; cloned from a history, its next version."""
        source = self.model_group_clone_source_details
        origin, history = source.origin(service)
        modified = source.modify_model_group_details or Modified()
        patches = source.patch_model_group_member_model_details or Patches()
        details = modified.model_group_details
        if details is not None:
            details.check_same_kind(origin)
        metadata = details.metadata() if details else None
        head = {
            **modified.head(created_by, "modelgroup"),
            "compartment_id": self.compartment_id or origin.compartment_id,
            "project_id": self.project_id or origin.project_id,
            "tags": {**origin.tags, **modified.tags()},
        }
        return records.GroupRecord(
            **head,
            id=new_id(GROUP),
            description=modified.description or origin.description,
            kind=origin.kind,
            base_model_id=origin.base_model_id,
            members=patches.applied(origin.members),
            custom_metadata=origin.custom_metadata if metadata is None else metadata,
            version_history_id=modified.model_group_version_history_id or history,
            version_label=modified.version_label,
            source_group_id=origin.id,
            create_type="CLONE",
        )


class UpdateGroup(Updated):
    """Members, base and kind are immutable; they may be sent unchanged."""

    version_label: str | None = None
    model_group_version_history_id: str | None = None
    create_type: str | None = None
    model_group_details: GroupDetails | None = None
    member_model_entries: MemberEntries | None = None
    source_model_group_id: str | None = None
    version_id: int | None = None

    def changes(self, record: Record) -> Json:
        columns = {
            "version_label": self.version_label,
            "version_history_id": self.model_group_version_history_id or None,
        }
        given = {name: value for name, value in columns.items() if value is not None}
        return {**super().changes(record), **given}

    def check_mutable(self, group: records.GroupRecord) -> None:
        """Raises ParameterInvalid if the request changes an immutable field."""
        details, entries = self.model_group_details, self.member_model_entries
        pairs: dict[str, tuple[Any, Any]] = {
            "createType": (self.create_type, group.create_type),
            "memberModelEntries": (entries and entries.members(), group.members),
            "sourceModelGroupId": (self.source_model_group_id, group.source_group_id),
            "versionId": (self.version_id, group.version),
            "modelGroupDetails.type": (details and details.type, group.kind),
            "modelGroupDetails.baseModelId": (
                details and details.base_model_id,
                group.base_model_id,
            ),
            "modelGroupDetails.customMetadataList": (
                details and details.metadata(),
                group.custom_metadata,
            ),
        }
        # An empty value may be sent for a field that is not set.
        changed = [
            place
            for place, (given, there) in pairs.items()
            if given is not None and given != there and (given or there)
        ]
        if changed:
            raise ParameterInvalid(
                f"{', '.join(changed)} of a model group cannot be changed; create or clone "
                "another one"
            )


class GroupMetadata(ResponseModel):
    key: str
    value: str
    description: str | None = Field(None, exclude_if=lambda text: text is None)
    category: str | None = Field(None, exclude_if=lambda text: text is None)


class ModelGroupDetails(ResponseModel):
    type: Type = Field(validation_alias="kind")
    base_model_id: str | None = Field(exclude_if=lambda id: not id)
    custom_metadata_list: list[GroupMetadata] = Field(validation_alias="custom_metadata")


class MemberModelDetails(ResponseModel):
    model_id: str
    inference_key: str | None = Field(validation_alias="key")
    weight: float = Field(exclude_if=lambda weight: weight == 1.0)


class MemberModelEntries(ResponseModel):
    member_model_details: list[MemberModelDetails] = Field(validation_alias="members")


class ModelGroupSummary(StatefulResource):
    """A group in a list, without its members."""

    lifecycle_state: GroupState = Field(validation_alias="state")
    model_group_details: ModelGroupDetails
    model_group_version_history_id: str | None = Field(validation_alias="version_history_id")
    model_group_version_history_name: str | None = Field(validation_alias="version_history_name")
    version_label: EmptyAsNull
    version_id: int | None = Field(validation_alias="version")

    @classmethod
    def of(cls, record: Any, **more: Any) -> Self:
        return super().of(record, model_group_details=record, **more)


class ModelGroup(ModelGroupSummary):
    """A group with its members."""

    description: str
    member_model_entries: MemberModelEntries
    create_type: Literal["CREATE", "CLONE"]
    source_model_group_id: str | None = Field(validation_alias="source_group_id")

    @classmethod
    def of(cls, record: Any, **more: Any) -> Self:
        return super().of(record, member_model_entries=record, **more)


class ModelGroupModelSummary(StatefulResource, ModelOutline):
    """A member of a group, with the current state of its model."""

    model_id: str
    inference_key: str | None

    @classmethod
    def of(cls, record: GroupModel, **more: Any) -> Self:
        named = {"model_id": record.model.id, "inference_key": record.member.key}
        return super().of(record.model, **named, **more)


@router.post("", responses=success("etag", "opc-work-request-id"))
def create_model_group(
    body: Annotated[CreateGroup | CloneGroup, Body(discriminator="create_type")], call: Create
) -> ModelGroup:
    record = call.registry.groups.create(body.group(call.service, call.caller), check=True)
    call.service.catalogue.changed()  # an older version may fall out of those that are stored
    work = finished(call.registry, "MODEL_GROUP_CREATE", "CREATED", _KIND, record)
    return call.shown(record, ModelGroup.of(record), work)


@router.get("", responses=success("opc-next-page"))
def list_model_groups(query: Annotated[GroupQuery, Query()], call: Read) -> list[ModelGroupSummary]:
    page = call.registry.groups.list(query.reading(), **query.filters())
    return call.paged(page, ModelGroupSummary.of)


@router.get("/{id}", responses=success("etag"))
def get_model_group(id: str, call: Read) -> ModelGroup:
    record = call.registry.groups.get(id)
    return call.shown(record, ModelGroup.of(record))


@router.get("/{id}/models", responses=success("opc-next-page"))
def list_model_group_models(
    id: str, query: Annotated[MemberQuery, Query()], call: Read
) -> list[ModelGroupModelSummary]:
    page = call.registry.groups.list_models(id, query.reading(), **query.filters())
    return call.paged(page, ModelGroupModelSummary.of)


@router.put("/{id}", responses=success("etag"))
def update_model_group(id: str, body: UpdateGroup, call: Update) -> ModelGroup:
    record = call.registry.groups.get(id)
    expect = call.expected(record)
    body.check_mutable(record)
    changes: Any = body.changes(record)
    record = call.registry.groups.update(id, expect, **changes)
    return call.shown(record, ModelGroup.of(record))


@router.post("/{id}/actions/changeCompartment", **bare(204, "etag"))
def change_model_group_compartment(id: str, body: ChangeCompartment, call: Action) -> Response:
    expect = call.expected(call.registry.groups.get(id))
    return done(call.registry.groups.update(id, expect, compartment_id=body.compartment_id))


@router.post(
    "/{id}/actions/activate",
    responses=success("etag", "opc-work-request-id"),
)
def activate_model_group(id: str, call: Action) -> ModelGroup:
    return _switched(id, GroupState.ACTIVE, call)


@router.post(
    "/{id}/actions/deactivate",
    responses=success("etag", "opc-work-request-id"),
)
def deactivate_model_group(id: str, call: Action) -> ModelGroup:
    return _switched(id, GroupState.INACTIVE, call)


@router.delete("/{id}", **bare(202, "etag", "opc-work-request-id"))
def delete_model_group(id: str, call: Update) -> Response:
    expect = call.expected(call.registry.groups.get(id))
    gone = call.service.catalogue.delete_group(id, expect)
    return done(gone, finished(call.registry, "MODEL_GROUP_DELETE", "DELETED", _KIND, gone), 202)


def _switched(id: str, state: GroupState, call: Change) -> ModelGroup:
    expect = call.expected(call.registry.groups.get(id))
    record = call.registry.groups.set_state(id, state, expect=expect)
    # Clients of OCI's own tools look for a work request here too.
    work = finished(call.registry, "MODEL_GROUP_UPDATE", "UPDATED", _KIND, record)
    return call.shown(record, ModelGroup.of(record), work)
