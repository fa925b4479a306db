"""Work requests, their logs and errors, as JSON.

Pure. It must not know what the work is.
"""

from __future__ import annotations

from stacked.api.wire.common import Json, moment
from stacked.registry.records import WorkError, WorkLog, WorkRequest


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
