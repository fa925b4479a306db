"""What all records look like: times, tags, etags, and the head of every resource.

Pure. It must not know any one resource.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stacked.registry.records import Record, WorkRequest

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


def head_of(record: Record, state: str) -> Json:
    return {
        "id": record.id,
        "compartmentId": record.compartment_id,
        "projectId": record.project_id,
        "displayName": record.display_name,
        "createdBy": record.created_by,
        "timeCreated": moment(record.time_created),
        "lifecycleState": state,
        "lifecycleDetails": record.reason,
        **tags_of(record.tags),
    }


def tags_of(tags: Mapping[str, Any]) -> Json:
    return {
        "freeformTags": dict(tags.get("freeform", {})),
        "definedTags": dict(tags.get("defined", {})),
    }
