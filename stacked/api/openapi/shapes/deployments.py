"""Deployments and their model states, as they are answered.

It must not know routes.
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from stacked.api.openapi.shapes.common import Head, Tags, closed, open_
from stacked.registry.states import DeploymentState, MemberState


@closed
class ModelGroupChoice(TypedDict):
    modelGroupId: str | None


@open_
class ShownInfrastructure(TypedDict):
    """As it was given; what else was in it is kept and shown."""

    infrastructureType: Literal["INSTANCE_POOL"]
    instanceConfiguration: dict[str, Any]


@open_
class ShownEnvironment(TypedDict):
    """As it was given; what else was in it is kept and shown."""

    environmentConfigurationType: Literal["DEFAULT", "OCIR_CONTAINER"]
    environmentVariables: dict[str, str]


@closed
class DeploymentConfiguration(TypedDict):
    deploymentType: Literal["MODEL_GROUP"]
    modelGroupConfigurationDetails: ModelGroupChoice
    infrastructureConfigurationDetails: ShownInfrastructure
    environmentConfigurationDetails: ShownEnvironment


@closed
class SystemData(TypedDict):
    systemInfraType: Literal["INSTANCE_POOL"]
    modelType: Literal["MANAGED_MODEL"]
    currentInstanceCount: int


class _DeploymentHead(Head):
    lifecycleState: DeploymentState
    description: str
    modelDeploymentConfigurationDetails: DeploymentConfiguration
    categoryLogDetails: Tags | None
    modelDeploymentUrl: str
    modelDeploymentSystemData: SystemData


@closed
class ModelDeploymentSummary(_DeploymentHead):
    """A deployment in a list."""


@closed
class ModelDeployment(_DeploymentHead):
    """What serves a group on this machine."""

    lifecycleDetails: str


@closed
class ModelDeploymentModelStateSummary(TypedDict):
    """How one member of the deployed group fared."""

    modelId: str
    projectId: str
    displayName: str
    inferenceKey: str | None
    state: MemberState
    lifecycleDetails: str
    freeformTags: Tags
    definedTags: Tags
    systemTags: Tags
