"""What model groups may be asked: the bodies of their requests, to values.

Pure: it reads and refuses, and names the place. It must not know which models there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from stacked.api.asked.common import (
    Body,
    Described,
    Description,
    Json,
    MetadataItem,
    Tagged,
    Text,
    changed_places,
)
from stacked.config import Key, Ocid
from stacked.errors import GroupInvalid, ParameterInvalid
from stacked.registry.records import GroupMember


class MemberDetails(Body):
    """A member: a model id and, where it has one, its inference key."""

    model_id: Ocid
    inference_key: Key | None = None

    def member(self) -> GroupMember:
        return GroupMember(self.model_id, self.inference_key)


class MemberEntries(Body):
    member_model_details: list[MemberDetails]


class GroupDetails(Body):
    type: Literal["STACKED", "HOMOGENEOUS", "HETEROGENEOUS"]
    base_model_id: str | None = None
    custom_metadata_list: list[MetadataItem] | None = None

    def base(self) -> str | None:
        """The base of a STACKED group, None for other kinds. Raises ParameterInvalid."""
        if self.type != "STACKED":
            return None
        if not self.base_model_id:
            raise ParameterInvalid("modelGroupDetails.baseModelId is missing; it names the base")
        return self.base_model_id

    def metadata(self) -> tuple[Json, ...]:
        items = self.custom_metadata_list or []
        return tuple(item.model_dump(by_alias=True, exclude_none=True) for item in items)


class NewGroup(Body):
    """What decides how the rest of `POST /modelGroups` is read."""

    create_type: Literal["CREATE", "CLONE"]


class _GroupLabels(Tagged):
    description: Description = ""
    version_label: Text = ""
    model_group_version_history_id: str | None = None


class CreateGroup(_GroupLabels):
    """`POST /modelGroups` with `createType` CREATE."""

    create_type: Literal["CREATE"]
    model_group_details: GroupDetails
    member_model_entries: MemberEntries

    def members(self) -> tuple[GroupMember, ...]:
        return tuple(item.member() for item in self.member_model_entries.member_model_details)


class Patch(Body):
    operation: Literal["INSERT", "REMOVE"]
    values: list[MemberDetails]


class Patches(Body):
    items: tuple[Patch, ...] = ()


class Modified(_GroupLabels):
    """What a clone has other than its source."""

    model_group_details: GroupDetails | None = None


class CloneSource(Body):
    model_group_clone_source_type: Literal["MODEL_GROUP", "MODEL_GROUP_VERSION_HISTORY"]
    source_id: Annotated[str, Field(min_length=1)]
    modify_model_group_details: Modified | None = None
    patch_model_group_member_model_details: Patches | None = None


class CloneGroup(Body):
    """`POST /modelGroups` with `createType` CLONE."""

    create_type: Literal["CLONE"]
    compartment_id: Text = ""
    project_id: Text = ""
    model_group_clone_source_details: CloneSource


class UpdateGroup(Described):
    """`PUT /modelGroups/{id}`: a field that is left out stays."""

    version_label: str | None = None
    model_group_version_history_id: str | None = None

    def changes(self, tags: Mapping[str, Any]) -> Json:
        """The columns that change; `tags` are those that the group has."""
        columns = {
            "version_label": self.version_label,
            "version_history_id": self.model_group_version_history_id or None,
        }
        given = {name: value for name, value in columns.items() if value is not None}
        return {**self.described(tags), **given}


_IMMUTABLE = (
    "createType",
    "modelGroupDetails",
    "memberModelEntries",
    "sourceModelGroupId",
    "versionId",
)


def check_mutable(tree: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """What makes a group never changes: it may be sent as it is. Raises ParameterInvalid."""
    given = {name: tree[name] for name in _IMMUTABLE if tree.get(name) is not None}
    changed = changed_places(given, shown, "")
    if changed:
        raise ParameterInvalid(
            f"{', '.join(changed)} of a model group cannot be changed; create or clone another one"
        )


def patched(members: Sequence[GroupMember], patches: Sequence[Patch]) -> list[GroupMember]:
    """The members of a clone. Raises GroupInvalid.

    REMOVE without a key takes out every entry of the model. Removals come first, so that a key can
    move to another model in one request.
    """
    left = list(members)
    for patch in patches:
        for value in patch.values if patch.operation == "REMOVE" else ():
            gone = [member for member in left if _names(value, member)]
            if not gone:
                what = f" under key {value.inference_key!r}" if value.inference_key else ""
                raise GroupInvalid(f"REMOVE: model {value.model_id} is not in the group{what}")
            left = [member for member in left if member not in gone]
    inserts = (patch.values for patch in patches if patch.operation == "INSERT")
    return [*left, *(value.member() for values in inserts for value in values)]


def _names(value: MemberDetails, member: GroupMember) -> bool:
    same_key = value.inference_key is None or value.inference_key == member.key
    return value.model_id == member.model_id and same_key
