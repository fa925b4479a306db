"""Records to the JSON of OCI's control plane: discriminators always there, lists never null.

Pure functions, one a kind of record. It must not know routes or what is live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from stacked.registry.records import (
    DeployedMember,
    Deployment,
    GroupModel,
    Model,
    ModelGroup,
    Record,
    WorkError,
    WorkLog,
    WorkRequest,
)

Json = dict[str, Any]


def moment(time: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def etag(record: Record | WorkRequest) -> str:
    """Another string after every change of the record."""
    if isinstance(record, Record):
        seen = (record.id, record.time_updated.isoformat())
    else:
        seen = (record.id, f"{record.status.value} {record.percent}")
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:32]


def _head(record: Record, state: str) -> Json:
    return {
        "id": record.id,
        "compartmentId": record.compartment_id,
        "projectId": record.project_id,
        "displayName": record.display_name,
        "createdBy": record.created_by,
        "timeCreated": moment(record.time_created),
        "lifecycleState": state,
        "lifecycleDetails": record.reason,
        **_tags(record.tags),
    }


def _tags(tags: Mapping[str, Any]) -> Json:
    return {
        "freeformTags": dict(tags.get("freeform", {})),
        "definedTags": dict(tags.get("defined", {})),
    }


def model_summary(record: Model) -> Json:
    by = {"category": "USER", "isModelByReference": False}
    return {**_head(record, record.state.value), **by}


def model(record: Model) -> Json:
    kept = {
        "source": _without_secrets(record.source),
        "digest": record.digest,
        "kind": record.kind,
        "rank": str(record.rank) if record.rank else "",
        "bytes": str(record.bytes) if record.bytes else "",
    }
    items = [_item(key, value) for key, value in kept.items() if value]
    return {**model_summary(record), "customMetadataList": items, "definedMetadataList": []}


def _item(key: str, value: str) -> Json:
    return {"key": key, "value": value, "category": "Other", "keywords": [], "hasArtifact": False}


def _without_secrets(source: str) -> str:
    """A source as everyone may read it: no password and no signature of an address."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def group_summary(record: ModelGroup) -> Json:
    return {
        **_head(record, record.state.value),
        "timeUpdated": moment(record.time_updated),
        "systemTags": {},
        "modelGroupDetails": {
            "type": "STACKED",
            "baseModelId": record.base_model_id,
            "customMetadataList": [dict(item) for item in record.custom_metadata],
        },
        "modelGroupVersionHistoryId": record.version_history_id,
        "versionLabel": record.version_label or None,
        "versionId": record.version,
    }


def group(record: ModelGroup) -> Json:
    members = [{"modelId": m.model_id, "inferenceKey": m.key} for m in record.members]
    return {
        **group_summary(record),
        "description": record.description,
        "memberModelEntries": {"memberModelDetails": members},
        "createType": record.create_type,
        "sourceModelGroupId": record.source_group_id,
    }


def group_model(entry: GroupModel) -> Json:
    named = {"modelId": entry.model.id, "inferenceKey": entry.key}
    changed = {"timeUpdated": moment(entry.model.time_updated)}
    return {**model_summary(entry.model), **named, **changed}


def deployment_summary(record: Deployment, url: str) -> Json:
    """`url` is where this server is reached; clients put `/predict` behind it."""
    head = _head(record, record.state.value)
    del head["lifecycleDetails"]
    return {
        **head,
        "description": record.description,
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            "modelGroupConfigurationDetails": {"modelGroupId": record.group_id},
            "infrastructureConfigurationDetails": {
                "infrastructureType": "INSTANCE_POOL",
                "instanceConfiguration": {"instanceShapeName": "LOCAL"},
                "scalingPolicy": {"policyType": "FIXED_SIZE", "instanceCount": 1},
            },
            "environmentConfigurationDetails": {
                "environmentConfigurationType": "DEFAULT",
                "environmentVariables": {},
            },
        },
        "modelDeploymentUrl": url,
        "modelDeploymentSystemData": {
            "systemInfraType": "INSTANCE_POOL",
            "modelType": "MANAGED_MODEL",
            "currentInstanceCount": 1,
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
        **_tags({}),
        "systemTags": {},
    }


def work_request(record: WorkRequest) -> Json:
    resources = [
        {
            "actionType": item.action,
            "entityType": item.entity,
            "identifier": item.id,
            "entityUri": item.uri,
        }
        for item in record.resources
    ]
    started, finished = record.time_started, record.time_finished
    return {
        "id": record.id,
        "operationType": record.operation,
        "status": record.status.value,
        "compartmentId": record.compartment_id,
        "percentComplete": record.percent,
        "resources": resources,
        "timeAccepted": moment(record.time_accepted),
        "timeStarted": moment(started) if started else None,
        "timeFinished": moment(finished) if finished else None,
    }


def work_log(record: WorkLog) -> Json:
    return {"message": record.message, "timestamp": moment(record.time)}


def work_error(record: WorkError) -> Json:
    """`modelId` is ours: the model that is the reason, where one is."""
    blamed = {"modelId": record.model_id} if record.model_id else {}
    said = {"code": record.code, "message": record.message}
    return {**said, "timestamp": moment(record.time), **blamed}
