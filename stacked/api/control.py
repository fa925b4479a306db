"""The control plane under `/20190101`: models, groups, the deployment, LIVE updates, their work.

A route reads, asks the service or its registry, and renders through `wire`. It must not know how
a group is made live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from stacked import errors
from stacked.api import asked, wire
from stacked.api.bodies import parse_object, read_body
from stacked.api.errors import plain_body, status_of
from stacked.api.lists import FILTERS, SORTS, WORK_SORTS, Names, listed
from stacked.errors import GroupInvalid, ParameterInvalid, RecordStale, StackedError, UpdateNotLive
from stacked.registry.records import Affected, ModelGroup, Page, Query, Record, WorkRequest
from stacked.registry.states import DeploymentState, GroupState, ModelState, WorkStatus
from stacked.service import Service

PREFIX = "/20190101"

B = TypeVar("B", bound=BaseModel)

# What OCI calls these cases; every other error keeps its own code.
OCI_CODES: Mapping[type[StackedError], str] = {
    errors.RecordAbsent: "NotAuthorizedOrNotFound",
    errors.RecordConflict: "Conflict",
    errors.IllegalMove: "Conflict",
    errors.RecordStale: "NoEtagMatch",
    errors.PageInvalid: "InvalidParameter",
    errors.ParameterInvalid: "InvalidParameter",
    errors.GroupInvalid: "InvalidParameter",
    errors.BodyInvalid: "CannotParseRequest",
    errors.BodyTooLarge: "PayloadTooLarge",
    errors.NotReady: "ServiceUnavailable",
}


class _Route(APIRoute):
    """A route whose errors have OCI's codes, and that answers in its shape alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(request)
            except StackedError as error:
                code = OCI_CODES.get(type(error), error.code)
                return JSONResponse(plain_body(code, str(error)), status_of(error))
            except ValidationError as error:
                return JSONResponse(_invalid(error), 400)

        return handle


def control_routes(app: FastAPI, service: Service, allowed: Depends) -> None:
    """Add the control plane to the app. `allowed` refuses writing verbs where they are off."""
    router = APIRouter(prefix=PREFIX, route_class=_Route)
    _models(router, service, allowed)
    _groups(router, service, allowed)
    _deployments(router, service, allowed)
    _work_requests(router, service)
    app.include_router(router)
    _own(app, service)


def _own(app: FastAPI, service: Service) -> None:
    """What OCI has no words for. Errors have our own codes here."""

    @app.get("/stacked/status")
    def status() -> JSONResponse:
        return JSONResponse(service.status())

    @app.post("/stacked/check", status_code=204)
    def check(body: asked.Settings) -> None:
        """Whether a file's engine settings are those in use; the settings themselves stay here."""
        if body.engine is None:
            return
        held = service.registry.get_deployment(service.deployment_id).configuration
        names = asked.differing(body.engine, held.get("engine", {}))
        if names:
            raise UpdateNotLive(
                f"engine settings differ ({', '.join(names)}); that needs a restart"
            )


def _models(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/models", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        body = await _read(request, service, asked.CreateModel)
        source = body.item("source")
        if not source:
            raise ParameterInvalid(
                "customMetadataList: an item with key 'source' must say where the adapter stands"
            )
        record = await service.register_model(
            source, model_id=asked.model_id_given(body), display_name=body.display_name
        )
        if body.tags():
            tagged = replace(record, tags=body.tags())
            record = await asyncio.to_thread(service.registry.put_model, tagged)
        return _shown(wire.model(record), record)

    @router.get("/models")
    def list_(request: Request) -> JSONResponse:
        names = {**FILTERS, "lifecycleState": ModelState}
        return listed(request, service.registry.list_models, SORTS, names, wire.model_summary)

    @router.get("/models/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_model(id)
        return _shown(wire.model(record), record)


def _groups(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/modelGroups", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        tree = await _tree(request, service)
        kind = asked.NewGroup.model_validate(tree).create_type
        record = await (_create if kind == "CREATE" else _clone)(service, tree)
        work = await asyncio.to_thread(_made, service, record)
        return _shown(wire.group(record), record, {"opc-work-request-id": work.id})

    @router.get("/modelGroups")
    def list_(request: Request) -> JSONResponse:
        history = {"modelGroupVersionHistoryId": "version_history_id"}
        names = {**FILTERS, **history, "lifecycleState": GroupState}
        return listed(request, service.registry.list_groups, SORTS, names, wire.group_summary)

    @router.get("/modelGroups/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_group(id)
        return _shown(wire.group(record), record)

    @router.get("/modelGroups/{id}/models")
    def models(id: str, request: Request) -> JSONResponse:
        def read(query: Query, **filters: Any) -> Page[Any]:
            return service.registry.list_group_models(id, query, **filters)

        of_model = {name: FILTERS[name] for name in ("id", "displayName", "createdBy")}
        names = {**of_model, "inferenceKey": "key", "lifecycleState": ModelState}
        return listed(request, read, SORTS, names, wire.group_model)


async def _create(service: Service, tree: dict[str, Any]) -> ModelGroup:
    body = asked.CreateGroup.model_validate(tree)
    body.check()
    members = body.members()
    base = body.model_group_details.stacked_base()
    served = await asyncio.to_thread(_served_base, service)
    if base != served:
        raise GroupInvalid(f"baseModelId {base} is not the base that is served here ({served})")
    record = await service.create_group(
        display_name=body.display_name or _generated_name(),
        members=members,
        description=body.description,
        custom_metadata=body.model_group_details.metadata(),
        compartment_id=body.compartment_id,
        project_id=body.project_id,
    )
    return await _labelled(service, record, body.tags(), body.version_label)


def _served_base(service: Service) -> str:
    held = service.registry.get_deployment(service.deployment_id).group_id
    assert held is not None, "a deployment that serves has a group"
    return service.registry.get_group(held).base_model_id


async def _clone(service: Service, tree: dict[str, Any]) -> ModelGroup:
    body = asked.CloneGroup.model_validate(tree)
    source = body.model_group_clone_source_details
    if source.model_group_clone_source_type != "MODEL_GROUP":
        raise asked.not_yet("modelGroupCloneSourceType MODEL_GROUP_VERSION_HISTORY")
    origin = await asyncio.to_thread(service.registry.get_group, source.source_id)
    modified = source.modify_model_group_details or asked.Modified()
    modified.check()
    patches = source.patch_model_group_member_model_details or asked.Patches()
    metadata = list(origin.custom_metadata)
    details = modified.model_group_details
    if details is not None and details.custom_metadata_list is not None:
        metadata = list(details.metadata())
    record = await service.create_group(
        display_name=modified.display_name or _generated_name(),
        members=asked.patched(origin.members, patches.items),
        description=modified.description or origin.description,
        custom_metadata=metadata,
        source_group_id=origin.id,
        create_type="CLONE",
        compartment_id=body.compartment_id or origin.compartment_id,
        project_id=body.project_id or origin.project_id,
    )
    tags = modified.tags() or dict(origin.tags)
    return await _labelled(service, record, tags, modified.version_label)


async def _labelled(
    service: Service, record: ModelGroup, tags: dict[str, Any], label: str
) -> ModelGroup:
    if not tags and not label:
        return record
    return await asyncio.to_thread(
        service.registry.update_group, record.id, tags=tags, version_label=label
    )


def _made(service: Service, record: ModelGroup) -> WorkRequest:
    """The finished work of making a group; clients poll the one that the answer names."""
    registry = service.registry
    what = Affected("CREATED", "data-science-model-group", record.id, _uri("modelGroups", record))
    work = registry.open_work_request(
        "MODEL_GROUP_CREATE", [what], compartment_id=record.compartment_id
    )
    registry.advance(work.id, 0.0)
    return registry.succeed(work.id, f"group {record.display_name!r} was created")


def _deployments(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.get("/modelDeployments")
    def list_(request: Request) -> JSONResponse:
        sorts = {name: SORTS[name] for name in ("timeCreated", "displayName")}
        names = {**FILTERS, "lifecycleState": DeploymentState}
        url = _url(request)
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
        return _shown(wire.deployment(record, _url(request)), record)

    @router.put("/modelDeployments/{id}", dependencies=[allowed])
    async def update(id: str, request: Request) -> Response:
        body = await _read(request, service, asked.UpdateDeployment)
        record = await asyncio.to_thread(service.registry.get_deployment, id)
        given = request.headers.get("if-match")
        if given is not None and given.strip('"') != wire.etag(record):
            raise RecordStale(f"deployment {id} has changed since it was read; read it again")
        if id != service.deployment_id:
            raise ParameterInvalid(f"deployment {id} is not the one that is served here")
        group_id = asked.live_group(body, wire.deployment(record, _url(request)))
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


def _work_requests(router: APIRouter, service: Service) -> None:
    @router.get("/workRequests")
    def list_(request: Request) -> JSONResponse:
        names: Names = {
            "id": "id",
            "resourceId": "resource_id",
            "operationType": "operation",
            "status": WorkStatus,
        }
        read = service.registry.list_work_requests
        return listed(request, read, WORK_SORTS, names, wire.work_request)

    @router.get("/workRequests/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_work_request(id)
        headers = {} if record.time_finished else {"retry-after": "1"}
        return _shown(wire.work_request(record), record, headers)

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


# -- reading a request ----------------------------------------------------------------------


async def _tree(request: Request, service: Service) -> dict[str, Any]:
    """The body as an object, whatever its content type says."""
    limit = service.config.server.max_body_bytes
    declared = request.headers.get("content-length")
    return parse_object(await read_body(request.receive, limit, declared))


async def _read(request: Request, service: Service, kind: type[B]) -> B:
    return kind.model_validate(await _tree(request, service))


# -- answering ------------------------------------------------------------------------------


def _shown(
    body: wire.Json, record: Record | WorkRequest, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(body, headers={"etag": wire.etag(record), **(headers or {})})


def _invalid(error: ValidationError) -> dict[str, Any]:
    """The first fault; what is missing is told before what is wrong."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "missing")
    first = faults[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return plain_body("MissingParameter", f"{place} is missing")
    said = first["msg"].removeprefix("Value error, ")
    return plain_body("InvalidParameter", f"{place}: {said}")


def _uri(collection: str, record: Record) -> str:
    return f"{PREFIX}/{collection}/{record.id}"


def _url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _generated_name() -> str:
    return f"modelgroup-{datetime.now(UTC):%Y%m%d-%H%M%S}"
