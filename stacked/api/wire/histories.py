"""Version histories as JSON.

Pure. It must not know which groups there are.
"""

from __future__ import annotations

from stacked.api.wire.common import Json, head_of, moment
from stacked.registry.records import VersionHistory


def history_summary(record: VersionHistory) -> Json:
    return {
        **head_of(record, record.state.value),
        "timeUpdated": moment(record.time_updated),
        "systemTags": {},
        "latestModelGroupId": record.latest_group_id,
    }


def history(record: VersionHistory) -> Json:
    return {**history_summary(record), "description": record.description}
