"""What the control plane may be asked: the bodies of its requests, to values.

Pure: it reads and refuses, and names the place. It must not know routes, records or what is live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from stacked.config import Key, Ocid
from stacked.errors import GroupInvalid, ParameterInvalid
from stacked.registry.records import GroupMember

Json = dict[str, Any]

# Clients leave out what is null; a null that is sent means the same.
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Name = Annotated[Text, Field(max_length=255)]
Description = Annotated[Text, Field(max_length=400)]


class _Body(BaseModel):
    """Unknown fields are ignored: the SDK sends what its models have, and dicts as they are."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class MetadataItem(_Body):
    key: Text = ""
    value: Text = ""
    description: str | None = None
    category: str | None = None


class _Tagged(_Body):
    display_name: Name = ""
    compartment_id: Text = ""
    project_id: Text = ""
    freeform_tags: dict[str, Any] | None = None
    defined_tags: dict[str, Any] | None = None

    def tags(self) -> Json:
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        return {name: value for name, value in given.items() if value}


class CreateModel(_Tagged):
    """`POST /models`. Where the adapter stands is the custom metadata item `source`."""

    custom_metadata_list: list[MetadataItem] | None = None

    def item(self, key: str) -> str:
        """The value of a custom metadata item, empty where there is none."""
        items = self.custom_metadata_list or []
        return next((item.value for item in items if item.key == key), "")


class _Identified(_Body):
    model_id: Ocid | None = None


class MemberDetails(_Body):
    """A member: a model id and, where it has one, its inference key."""

    model_id: Ocid
    inference_key: Key | None = None

    def member(self) -> GroupMember:
        return GroupMember(self.model_id, self.inference_key)


class MemberEntries(_Body):
    member_model_details: list[MemberDetails]


class GroupDetails(_Body):
    type: Literal["STACKED", "HOMOGENEOUS", "HETEROGENEOUS"]
    base_model_id: str | None = None
    custom_metadata_list: list[MetadataItem] | None = None

    def stacked_base(self) -> str:
        """The base of a STACKED group. Raises ParameterInvalid for another kind of group."""
        if self.type != "STACKED":
            raise not_yet(f"a group of type {self.type} (STACKED is)")
        if not self.base_model_id:
            raise ParameterInvalid("modelGroupDetails.baseModelId is missing; it names the base")
        return self.base_model_id

    def metadata(self) -> list[Json]:
        items = self.custom_metadata_list or []
        return [item.model_dump(by_alias=True, exclude_none=True) for item in items]


class NewGroup(_Body):
    """What decides how the rest of `POST /modelGroups` is read."""

    create_type: Literal["CREATE", "CLONE"]


class _GroupLabels(_Tagged):
    description: Description = ""
    version_label: Text = ""
    model_group_version_history_id: str | None = None

    def check(self) -> None:
        if self.model_group_version_history_id:
            raise not_yet("modelGroupVersionHistoryId (version histories)")


class CreateGroup(_GroupLabels):
    """`POST /modelGroups` with `createType` CREATE."""

    model_group_details: GroupDetails
    member_model_entries: MemberEntries

    def members(self) -> list[GroupMember]:
        return [item.member() for item in self.member_model_entries.member_model_details]


class Patch(_Body):
    operation: Literal["INSERT", "REMOVE"]
    values: list[MemberDetails]


class Patches(_Body):
    items: list[Patch] = []


class Modified(_GroupLabels):
    model_group_details: GroupDetails | None = None


class CloneSource(_Body):
    model_group_clone_source_type: Literal["MODEL_GROUP", "MODEL_GROUP_VERSION_HISTORY"]
    source_id: str
    modify_model_group_details: Modified | None = None
    patch_model_group_member_model_details: Patches | None = None


class CloneGroup(_Body):
    """`POST /modelGroups` with `createType` CLONE."""

    compartment_id: Text = ""
    project_id: Text = ""
    model_group_clone_source_details: CloneSource


class GroupChoice(_Body):
    model_group_id: str = Field(min_length=1)


class DeploymentChange(_Body):
    deployment_type: str
    update_type: str | None = None
    model_group_configuration_details: GroupChoice | None = None
    infrastructure_configuration_details: Json | None = None
    environment_configuration_details: Json | None = None


class UpdateDeployment(_Body):
    """`PUT /modelDeployments/{id}`."""

    display_name: str | None = None
    description: str | None = None
    model_deployment_configuration_details: DeploymentChange | None = None
    freeform_tags: Json | None = None
    defined_tags: Json | None = None
    category_log_details: Json | None = None


class Settings(_Body):
    """`POST /stacked/check`. `engine` are the settings of a file; None: it has none."""

    engine: Json | None = None


def model_id_given(body: CreateModel) -> str | None:
    """The model id that the custom metadata item `modelId` asks for. Raises ValidationError."""
    return _Identified.model_validate({"modelId": body.item("modelId") or None}).model_id


def not_yet(what: str) -> ParameterInvalid:
    return ParameterInvalid(f"{what} is not served yet; see docs/control-plane.md")


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


def live_group(body: UpdateDeployment, shown: Json) -> str:
    """The id of the group that a PUT asks to serve LIVE. Raises ParameterInvalid for anything else.

    Clients send the other settings beside it: what is as `shown` (the deployment's JSON) passes.
    """
    change = body.model_deployment_configuration_details
    if change is None:
        raise not_yet("a change of anything but the model group")
    if change.deployment_type != "MODEL_GROUP":
        raise not_yet(f"deploymentType {change.deployment_type[:40]!r}")
    if change.update_type != "LIVE":
        raise not_yet(f"updateType {(change.update_type or 'ZDT')[:40]} (LIVE is)")
    if change.model_group_configuration_details is None:
        raise ParameterInvalid("modelGroupConfigurationDetails.modelGroupId is missing")
    given = body.model_dump(by_alias=True, exclude_none=True)
    config = given.pop("modelDeploymentConfigurationDetails")
    for name in ("deploymentType", "updateType", "modelGroupConfigurationDetails"):
        config.pop(name)
    kept = shown["modelDeploymentConfigurationDetails"]
    changed = [*_changed(given, shown, ""), *_changed(config, kept, "")]
    if changed:
        raise not_yet(f"a change of {', '.join(changed)} (LIVE changes the model group alone)")
    return change.model_group_configuration_details.model_group_id


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which two settings are not the same."""
    absent = object()
    names = one.keys() | other.keys()
    return sorted(n for n in names if one.get(n, absent) != other.get(n, absent))


def _changed(given: Mapping[str, Any], shown: Mapping[str, Any], place: str) -> list[str]:
    """The places where what is given is not what is shown; what is left out stays."""
    found: list[str] = []
    for name, value in given.items():
        there = shown.get(name)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            found += _changed(value, there, f"{place}{name}.")
        elif value != there and not (value in ("", {}, []) and not there):
            found.append(place + name)
    return found
