"""Health, adapters one by one, and what `stacked status` shows, as they are answered.

It must not know routes.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from stacked.api.openapi.shapes.common import closed
from stacked.registry.states import DeploymentState, MemberState


@closed
class Health(TypedDict):
    """What answers, and how much of it."""

    status: Literal["serving"]
    group: str
    generation: int
    models: int


@closed
class ModelHealth(TypedDict):
    status: Literal["healthy"]
    model: str
    generation: int


@closed
class LoadedModel(TypedDict):
    """An adapter that was loaded alone."""

    status: Literal["loaded"]
    key: str | None
    modelId: str
    digest: str
    generation: int


@closed
class RemovedModel(TypedDict):
    status: Literal["removed", "draining"]


@closed
class MemberStatus(TypedDict):
    """A live model: its requests in flight, and where its weights are."""

    modelId: str
    inferenceKey: str | None
    digest: str
    rank: int
    state: MemberState
    reason: str
    leases: int
    resident: bool
    onDevice: bool


@closed
class Status(TypedDict):
    """What `stacked status` shows."""

    deploymentId: str
    groupId: str | None
    groupName: str | None
    generation: int
    previousGroupId: str | None
    state: DeploymentState
    reason: str
    update: str | None
    draining: list[str]
    models: list[MemberStatus]
