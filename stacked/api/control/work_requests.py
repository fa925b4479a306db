"""Work requests: `/20190101/workRequests`, their logs and errors, and canceling one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import Query, Response
from pydantic import Field

from stacked.api.control.base import (
    CHANGE,
    IfMatch,
    ListQuery,
    Moment,
    Paged,
    ResponseModel,
    Served,
    bare,
    check_match,
    paged,
    resource_router,
    shown,
    success,
)
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
    """`step` is Stacked's own: the name of the step that the line tells of, where it does."""

    message: str
    timestamp: Moment = Field(validation_alias="time")
    step: str | None = Field(exclude_if=lambda step: step is None)


class WorkRequestError(ResponseModel):
    """`modelId` is Stacked's own: the model that is the reason, where one is."""

    code: str
    message: str
    timestamp: Moment = Field(validation_alias="time")
    model_id: str | None = Field(exclude_if=lambda id: not id)


@router.get("", responses=success("opc-next-page"))
def list_work_requests(
    query: Annotated[WorkRequestQuery, Query()], service: Served, response: Response
) -> list[WorkRequest]:
    page = service.registry.work_requests.list(query.reading(), **query.filters())
    return paged(response, page, WorkRequest.of)


@router.get("/{id}", responses=success("etag", "retry-after"))
def get_work_request(id: str, service: Served, response: Response) -> WorkRequest:
    record = service.registry.work_requests.get(id)
    headers = {} if record.time_finished else {"retry-after": "1"}
    return shown(response, record, WorkRequest.of(record), headers)


@router.get("/{id}/logs", responses=success("opc-next-page"))
def list_work_request_logs(
    id: str, query: Annotated[Paged, Query()], service: Served, response: Response
) -> list[WorkRequestLogEntry]:
    page = service.registry.work_requests.list_logs(id, query.reading())
    return paged(response, page, WorkRequestLogEntry.of)


@router.get("/{id}/errors", responses=success("opc-next-page"))
def list_work_request_errors(
    id: str, query: Annotated[Paged, Query()], service: Served, response: Response
) -> list[WorkRequestError]:
    page = service.registry.work_requests.list_errors(id, query.reading())
    return paged(response, page, WorkRequestError.of)


@router.delete(
    "/{id}",
    dependencies=CHANGE,
    **bare(202),
    response_description="Cancellation accepted",
)
async def cancel_work_request(id: str, service: Served, if_match: IfMatch = None) -> Response:
    check_match(if_match, await asyncio.to_thread(service.registry.work_requests.get, id))
    await service.deployments.cancel(id)
    return Response(status_code=202)
