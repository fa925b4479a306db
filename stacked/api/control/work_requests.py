"""Work requests: `/20190101/workRequests`, their logs and errors, and canceling one.

It must not know what the work is.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import wire
from stacked.api.control.answers import shown
from stacked.api.lists import WORK_SORTS, Names, listed
from stacked.errors import RecordStale
from stacked.registry.records import Page, Query
from stacked.registry.states import WorkStatus
from stacked.service import Service

LIST_FILTERS: Names = {
    "id": "id",
    "resourceId": "resource_id",
    "operationType": "operation",
    "status": WorkStatus,
}


def work_request_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.get("/workRequests")
    def list_(request: Request) -> JSONResponse:
        read = service.registry.list_work_requests
        return listed(request, read, WORK_SORTS, LIST_FILTERS, wire.work_request)

    @router.get("/workRequests/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_work_request(id)
        headers = {} if record.time_finished else {"retry-after": "1"}
        return shown(wire.work_request(record), record, headers)

    @router.get("/workRequests/{id}/logs")
    def logs(id: str, request: Request) -> JSONResponse:
        def read(query: Query) -> Page[Any]:
            return service.registry.list_logs(id, query)

        return listed(request, read, {}, {}, wire.work_log)

    @router.get("/workRequests/{id}/errors")
    def failures(id: str, request: Request) -> JSONResponse:
        def read(query: Query) -> Page[Any]:
            return service.registry.list_errors(id, query)

        return listed(request, read, {}, {}, wire.work_error)

    @router.delete("/workRequests/{id}", dependencies=[allowed])
    async def cancel(id: str, request: Request) -> Response:
        record = await asyncio.to_thread(service.registry.get_work_request, id)
        given = request.headers.get("if-match")
        if given is not None and given.strip('"') not in (wire.etag(record), "*"):
            raise RecordStale(f"{id} has changed since it was read; read it again")
        await service.deployments.cancel(id)
        return Response(status_code=202)
