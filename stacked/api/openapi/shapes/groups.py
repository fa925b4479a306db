"""Model groups, their members and version histories, as they are answered.

It must not know routes.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from stacked.api.openapi.shapes.common import Head, Moment, Tags, closed
from stacked.api.openapi.shapes.models import Outline
from stacked.registry.states import GroupState


@closed
class GroupMetadata(TypedDict):
    key: str
    value: str
    description: NotRequired[str]
    category: NotRequired[str]


@closed
class ModelGroupDetails(TypedDict):
    type: Literal["STACKED", "HOMOGENEOUS", "HETEROGENEOUS"]
    baseModelId: NotRequired[str]
    customMetadataList: list[GroupMetadata]


@closed
class MemberModelDetails(TypedDict):
    modelId: str
    inferenceKey: str | None


@closed
class MemberModelEntries(TypedDict):
    memberModelDetails: list[MemberModelDetails]


class _GroupHead(Head):
    lifecycleState: GroupState
    lifecycleDetails: str
    timeUpdated: Moment
    systemTags: Tags
    modelGroupDetails: ModelGroupDetails
    modelGroupVersionHistoryId: str | None
    modelGroupVersionHistoryName: str | None
    versionLabel: str | None
    versionId: int | None


@closed
class ModelGroupSummary(_GroupHead):
    """A group in a list: without its members."""


@closed
class ModelGroup(_GroupHead):
    """A base and adapters of it, or models of another kind of group."""

    description: str
    memberModelEntries: MemberModelEntries
    createType: Literal["CREATE", "CLONE"]
    sourceModelGroupId: str | None


@closed
class ModelGroupModelSummary(Outline):
    """A member of a group, as its model is now."""

    modelId: str
    inferenceKey: str | None
    timeUpdated: Moment
    systemTags: Tags
