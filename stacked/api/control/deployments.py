"""Model deployments: `/20190101/modelDeployments`, and their model states.

A route reads, asks, and renders. It must not know how a group is made live.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import done, expected, read, shown, tree_of, url_of
from stacked.api.gate import principal_of
from stacked.api.lists import FILTERS, SORTS, Names, listed
from stacked.deployment.activation import wanted_group
from stacked.deployment.deployments import Revision
from stacked.errors import ParameterInvalid
from stacked.registry import DEPLOYMENT, new_id
from stacked.registry.deployments import DeploymentChanges
from stacked.registry.records import Deployment, Page, Query, WorkRequest
from stacked.registry.states import DeploymentState
from stacked.service import Service

LIST_SORTS = {name: SORTS[name] for name in ("timeCreated", "displayName")}
LIST_FILTERS: Names = {**FILTERS, "lifecycleState": DeploymentState}
STATE_FILTERS: Names = {
    "inferenceKey": "key",
    "modelId": "model_id",
    "displayName": "display_name",
    "projectId": "project_id",
}


def deployment_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    _read(router, service)
    _create_and_update(router, service, allowed)
    _actions(router, service, allowed)


def _read(router: APIRouter, service: Service) -> None:
    @router.get("/modelDeployments")
    def list_(request: Request) -> JSONResponse:
        url = url_of(request)
        return listed(
            request,
            service.registry.deployments.list,
            LIST_SORTS,
            LIST_FILTERS,
            lambda record: wire.deployment_summary(record, url),
        )

    @router.get("/modelDeployments/{id}")
    def get(id: str, request: Request) -> JSONResponse:
        record = service.registry.deployments.get(id)
        return shown(wire.deployment(record, url_of(request)), record)

    @router.get("/modelDeployments/{id}/models/modelState")
    @router.get("/modelDeployments/{id}/modelStates")
    def states(id: str, request: Request) -> JSONResponse:
        def read_page(query: Query, **filters: Any) -> Page[Any]:
            return service.member_states(id, query, **filters)

        return listed(request, read_page, LIST_SORTS, STATE_FILTERS, wire.member_state)


def _create_and_update(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/modelDeployments", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        tree = await tree_of(request, service)
        body = asked.CreateDeployment.model_validate(tree)
        new = Deployment(
            id=new_id(DEPLOYMENT),
            display_name=body.name(),
            description=body.description,
            compartment_id=body.compartment_id,
            project_id=body.project_id,
            created_by=principal_of(request.scope),
            tags=body.tags(),
            configuration={"group": body.group_id(), **asked.parts_given(tree)},
        )
        record, work = await service.deployments.create(new)
        body_shown = wire.deployment(record, url_of(request))
        return shown(body_shown, record, {"opc-work-request-id": work.id})

    @router.put("/modelDeployments/{id}", dependencies=[allowed])
    async def update(id: str, request: Request) -> Response:
        tree = await tree_of(request, service)
        body = asked.UpdateDeployment.model_validate(tree)
        record = await asyncio.to_thread(service.registry.deployments.get, id)
        expect = expected(request, record)
        revision = revision_of(body, tree, record)
        return _accepted(await service.deployments.update(id, revision, expect))


def revision_of(body: asked.UpdateDeployment, tree: wire.Json, record: Deployment) -> Revision:
    """What an update changes of a deployment. Raises ParameterInvalid."""
    is_now = wire.deployment(record, "")
    parts = asked.changed_parts(tree, is_now)
    environment = parts.pop("environment", None)
    named = body.described(record.tags) | ({"configuration": parts} if parts else {})
    described = cast(DeploymentChanges, named)  # its keys are the fields that the body declares
    details = body.model_deployment_configuration_details
    if details is None:
        return Revision(described=described)
    details.check()
    chosen = details.model_group_configuration_details
    idle = record.state is DeploymentState.INACTIVE
    if details.update_type == "LIVE" and not idle:
        if chosen is None:
            raise ParameterInvalid("modelGroupConfigurationDetails.modelGroupId is missing")
        asked.check_live(tree, is_now)
        return Revision(chosen.model_group_id, None, True, described)
    same = chosen is None or chosen.model_group_id == wanted_group(record)
    group_id = None if chosen is None or same else chosen.model_group_id
    return Revision(group_id, environment, False, described)


def _actions(router: APIRouter, service: Service, allowed: Depends) -> None:
    async def found(id: str, request: Request) -> Deployment | None:
        record = await asyncio.to_thread(service.registry.deployments.get, id)
        return expected(request, record)

    @router.delete("/modelDeployments/{id}", dependencies=[allowed])
    async def delete(id: str, request: Request) -> Response:
        return _accepted(await service.deployments.delete(id, await found(id, request)))

    @router.post("/modelDeployments/{id}/actions/activate", dependencies=[allowed])
    async def activate(id: str, request: Request) -> Response:
        return _accepted(await service.deployments.activate(id, await found(id, request)))

    @router.post("/modelDeployments/{id}/actions/deactivate", dependencies=[allowed])
    async def deactivate(id: str, request: Request) -> Response:
        return _accepted(await service.deployments.deactivate(id, await found(id, request)))

    @router.post("/modelDeployments/{id}/actions/changeCompartment", dependencies=[allowed])
    async def move(id: str, request: Request) -> Response:
        body = await read(request, service, asked.ChangeCompartment)
        expect = await found(id, request)
        change = service.registry.deployments.update
        return done(await asyncio.to_thread(change, id, expect, compartment_id=body.compartment_id))


def _accepted(work: WorkRequest) -> Response:
    return Response(status_code=202, headers={"opc-work-request-id": work.id})
