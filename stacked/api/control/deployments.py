"""Model deployments: `/20190101/modelDeployments`, and the states of the models they serve.

It must not know how a group is made live.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import check_match, read, shown, url_of
from stacked.api.lists import FILTERS, SORTS, listed
from stacked.errors import ParameterInvalid
from stacked.registry.records import Page, Query
from stacked.registry.states import DeploymentState
from stacked.service import Service


def deployment_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.get("/modelDeployments")
    def list_(request: Request) -> JSONResponse:
        sorts = {name: SORTS[name] for name in ("timeCreated", "displayName")}
        names = {**FILTERS, "lifecycleState": DeploymentState}
        url = url_of(request)
        return listed(
            request,
            service.registry.list_deployments,
            sorts,
            names,
            lambda record: wire.deployment_summary(record, url),
        )

    @router.get("/modelDeployments/{id}")
    def get(id: str, request: Request) -> JSONResponse:
        record = service.registry.get_deployment(id)
        return shown(wire.deployment(record, url_of(request)), record)

    @router.put("/modelDeployments/{id}", dependencies=[allowed])
    async def update(id: str, request: Request) -> Response:
        body = await read(request, service, asked.UpdateDeployment)
        record = await asyncio.to_thread(service.registry.get_deployment, id)
        check_match(request, record)
        if id != service.deployment_id:
            raise ParameterInvalid(f"deployment {id} is not the one that is served here")
        group_id = asked.live_group(body, wire.deployment(record, url_of(request)))
        work = await service.begin_update(group_id)
        return Response(status_code=202, headers={"opc-work-request-id": work.id})

    @router.get("/modelDeployments/{id}/models/modelState")
    @router.get("/modelDeployments/{id}/modelStates")
    def states(id: str, request: Request) -> JSONResponse:
        def read(query: Query, **filters: Any) -> Page[Any]:
            return service.registry.list_member_states(id, query, **filters)

        sorts = {name: SORTS[name] for name in ("timeCreated", "displayName")}
        names = {
            "inferenceKey": "key",
            "modelId": "model_id",
            "displayName": "display_name",
            "projectId": "project_id",
        }
        return listed(request, read, sorts, names, wire.member_state)
