"""What this server answers with, as types: the shapes of `wire`, for the OpenAPI document.

Nothing may be in an answer that is not here; tests hold real answers against it. It must not know
routes.
"""

from stacked.api.openapi.shapes.common import (
    Error,
    OpenAIError,
    OpenAIErrorDetails,
)
from stacked.api.openapi.shapes.deployments import (
    DeploymentConfiguration,
    ModelDeployment,
    ModelDeploymentModelStateSummary,
    ModelDeploymentSummary,
    ModelGroupChoice,
    ShownEnvironment,
    ShownInfrastructure,
    SystemData,
)

__all__ = [
    "DeploymentConfiguration",
    "Error",
    "ModelDeployment",
    "ModelDeploymentModelStateSummary",
    "ModelDeploymentSummary",
    "ModelGroupChoice",
    "OpenAIError",
    "OpenAIErrorDetails",
    "ShownEnvironment",
    "ShownInfrastructure",
    "SystemData",
]
