"""Model groups as JSON: the discriminator is always there, and no list is ever null.

Pure. It must not know which models there are.
"""

from __future__ import annotations

from stacked.api.wire.common import Json, head_of, moment
from stacked.registry.records import GroupSummary, ModelGroup


def group_summary(record: GroupSummary) -> Json:
    return {
        **head_of(record, record.state.value),
        "timeUpdated": moment(record.time_updated),
        "systemTags": {},
        "modelGroupDetails": _details(record),
        "modelGroupVersionHistoryId": record.version_history_id,
        "modelGroupVersionHistoryName": record.version_history_name,
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


def _details(record: GroupSummary) -> Json:
    base = {"baseModelId": record.base_model_id} if record.base_model_id else {}
    items = [dict(item) for item in record.custom_metadata]
    return {"type": record.kind, **base, "customMetadataList": items}
