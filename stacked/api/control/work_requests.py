"""Work requests: `/20190101/workRequests`, their logs and errors, and canceling one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import Query, Response
from pydantic import Field

from stacked.api.control.base import ListQuery, Moment, Paged, ResponseModel
from stacked.api.control.calls import Read, Update, bare, resource_router, success
from stacked.registry.states import WorkStatus

router = resource_router("/workRequests", "Work requests")


class WorkRequestQuery(ListQuery):
    sort_by: Literal["timeAccepted", "operationType", "status"] | None = None
    id: str | None = None
    resource_id: str | None = None
    operation: str | None = Field(None, alias="operationType")
    status: WorkStatus | None = None


class WorkRequestResource(ResponseModel):
    """What a work request acts on."""

    action_type: Literal["CREATED", "UPDATED", "DELETED", "RELATED", "IN_PROGRESS"] = Field(
        validation_alias="action"
    )
    entity_type: str = Field(validation_alias="entity")
    identifier: str = Field(validation_alias="id")
    entity_uri: str | None = Field(validation_alias="uri")


class WorkRequest(ResponseModel):
    id: str
    operation_type: str = Field(validation_alias="operation")
    status: WorkStatus
    compartment_id: str
    percent_complete: float = Field(validation_alias="percent", ge=0, le=100)
    resources: list[WorkRequestResource]
    time_accepted: Moment
    time_started: Moment | None
    time_finished: Moment | None


class WorkRequestLogEntry(ResponseModel):
    """`step` is Stacked's own: the step that the line reports, if any."""

    message: str
    timestamp: Moment = Field(validation_alias="time")
    step: str | None = Field(exclude_if=lambda step: step is None)


class WorkRequestError(ResponseModel):
    """`modelId` is Stacked's own: the model that failed, if one did."""

    code: str
    message: str
    timestamp: Moment = Field(validation_alias="time")
    model_id: str | None = Field(exclude_if=lambda id: not id)


@router.get("", responses=success("opc-next-page"))
def list_work_requests(
    query: Annotated[WorkRequestQuery, Query()], call: Read
) -> list[WorkRequest]:
    page = call.registry.work_requests.list(query.reading(), **query.filters())
    return call.paged(page, WorkRequest.of)


@router.get("/{id}", responses=success("etag", "retry-after"))
def get_work_request(id: str, call: Read) -> WorkRequest:
    record = call.registry.work_requests.get(id)
    headers = {} if record.time_finished else {"retry-after": "1"}
    return call.shown(record, WorkRequest.of(record), headers)


@router.get("/{id}/logs", responses=success("opc-next-page"))
def list_work_request_logs(
    id: str, query: Annotated[Paged, Query()], call: Read
) -> list[WorkRequestLogEntry]:
    page = call.registry.work_requests.list_logs(id, query.reading())
    return call.paged(page, WorkRequestLogEntry.of)


@router.get("/{id}/errors", responses=success("opc-next-page"))
def list_work_request_errors(
    id: str, query: Annotated[Paged, Query()], call: Read
) -> list[WorkRequestError]:
    page = call.registry.work_requests.list_errors(id, query.reading())
    return call.paged(page, WorkRequestError.of)


@router.delete(
    "/{id}",
    **bare(202),
    response_description="Cancellation accepted",
)
async def cancel_work_request(id: str, call: Update) -> Response:
    call.check_match(await asyncio.to_thread(call.registry.work_requests.get, id))
    await call.service.deployments.cancel(id)
    return Response(status_code=202)
