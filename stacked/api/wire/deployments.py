"""Deployments, and how their members fared, as JSON.

Pure. It must not know what is live.
"""

from __future__ import annotations

from stacked.api.wire.common import Json, head_of, tags_of
from stacked.registry.records import DeployedMember, Deployment
from stacked.registry.states import DeploymentState

_INFRASTRUCTURE = {
    "infrastructureType": "INSTANCE_POOL",
    "instanceConfiguration": {"instanceShapeName": "LOCAL"},
    "scalingPolicy": {"policyType": "FIXED_SIZE", "instanceCount": 1},
}
_ENVIRONMENT = {"environmentConfigurationType": "DEFAULT", "environmentVariables": {}}
# Where an engine answers; while another one is on its way, the committed one mostly does.
_RUNS = (DeploymentState.ACTIVE, DeploymentState.NEEDS_ATTENTION, DeploymentState.UPDATING)


def deployment_summary(record: Deployment, url: str) -> Json:
    """`url` is where this server is reached; clients put `/predict` behind the deployment's."""
    head = head_of(record, record.state.value)
    del head["lifecycleDetails"]
    kept = record.configuration
    group_id = record.group_id or kept.get("group")
    return {
        **head,
        "description": record.description,
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
            "infrastructureConfigurationDetails": kept.get("infrastructure") or _INFRASTRUCTURE,
            "environmentConfigurationDetails": {
                **_ENVIRONMENT,
                **(kept.get("environment") or {}),
            },
        },
        "categoryLogDetails": kept.get("logs"),
        "modelDeploymentUrl": f"{url}/{record.id}",
        "modelDeploymentSystemData": {
            "systemInfraType": "INSTANCE_POOL",
            "modelType": "MANAGED_MODEL",
            "currentInstanceCount": int(record.state in _RUNS),
        },
    }


def deployment(record: Deployment, url: str) -> Json:
    return {**deployment_summary(record, url), "lifecycleDetails": record.reason}


def member_state(record: DeployedMember) -> Json:
    """`lifecycleDetails`, the reason, is ours; the SDK passes over it."""
    return {
        "modelId": record.model_id,
        "projectId": record.project_id,
        "displayName": record.display_name,
        "inferenceKey": record.key,
        "state": record.state.value,
        "lifecycleDetails": record.reason,
        **tags_of({}),
        "systemTags": {},
    }
