"""The model catalogue: `/20190101/models`, without the artifacts.

It must not know groups or deployments.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import done, expected, read, shown
from stacked.api.gate import principal_of
from stacked.api.lists import FILTERS, SORTS, Names, listed
from stacked.errors import NotOffered, RecordAbsent, RecordConflict
from stacked.registry import MODEL, new_id
from stacked.registry.records import Model
from stacked.registry.states import ModelState
from stacked.service import Service


class Category(enum.StrEnum):
    """Whose a model is; all that is here is users'."""

    USER = "USER"
    SERVICE = "SERVICE"


LIST_FILTERS: Names = {
    **FILTERS,
    "category": Category,
    "versionLabel": "version_label",
    "modelVersionSetName": "version_set_name",
    "lifecycleState": ModelState,
}

# Operations between the catalogue and OCI's object storage, and what does the same here.
OBJECT_STORAGE = {
    "exportArtifact": "upload the artifact: POST …/artifact",
    "importArtifact": "download it: GET …/artifact/content",
    "registerArtifactReference": (
        "name a path with the custom metadata item `source` when the model is created"
    ),
    "restore": "nothing is archived here; the artifact is there",
}


def model_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    _create_and_read(router, service, allowed)
    _change(router, service, allowed)
    _provenance(router, service, allowed)
    _not_offered(router)


def _create_and_read(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/models", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        body = await read(request, service, asked.CreateModel)
        record = await asyncio.to_thread(_create, service, body, principal_of(request.scope))
        return shown(wire.model(record), record)

    @router.get("/models")
    def list_(request: Request) -> JSONResponse:
        return listed(
            request, service.registry.models.list, SORTS, LIST_FILTERS, wire.model_summary
        )

    @router.get("/models/{id}")
    def get(id: str) -> JSONResponse:
        return _shown(service, service.registry.models.get(id))


def _create(service: Service, body: asked.CreateModel, created_by: str) -> Model:
    model = Model(
        id="",
        display_name=body.display_name or f"model-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        description=body.description,
        compartment_id=body.compartment_id,
        project_id=body.project_id,
        created_by=created_by,
        version_label=body.version_label,
        version_set_id=body.model_version_set_id or None,
        tags=body.tags(),
        extra=body.extra(),
    )
    source, id = body.item("source"), asked.model_id_given(body)
    if source:
        return service.catalogue.register(model, source, id)
    return service.registry.models.put(replace(model, id=new_id(MODEL)))


def _change(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.put("/models/{id}", dependencies=[allowed])
    async def update(id: str, request: Request) -> JSONResponse:
        body = await read(request, service, asked.UpdateModel)
        return await asyncio.to_thread(_update, service, id, request, body)

    @router.delete("/models/{id}", dependencies=[allowed])
    def delete(id: str, request: Request) -> Response:
        record = service.registry.models.get(id)
        return done(service.catalogue.delete(id, expected(request, record)))

    @router.post("/models/{id}/actions/activate", dependencies=[allowed])
    def activate(id: str, request: Request) -> JSONResponse:
        return _move(service, id, ModelState.ACTIVE, request)

    @router.post("/models/{id}/actions/deactivate", dependencies=[allowed])
    def deactivate(id: str, request: Request) -> JSONResponse:
        return _move(service, id, ModelState.INACTIVE, request)

    @router.post("/models/{id}/actions/changeCompartment", dependencies=[allowed])
    async def move(id: str, request: Request) -> Response:
        body = await read(request, service, asked.ChangeCompartment)
        record = await asyncio.to_thread(service.registry.models.get, id)
        changes: Any = {"compartment_id": body.compartment_id}
        expect = expected(request, record)
        changed = await asyncio.to_thread(service.registry.models.update, id, expect, **changes)
        return done(changed)


def _update(service: Service, id: str, request: Request, body: asked.UpdateModel) -> JSONResponse:
    record = service.registry.models.get(id)
    expect = expected(request, record)
    asked.check_source(body, wire.shown_source(record.source))
    changes: Any = body.changes(record.tags, record.extra)
    return _shown(service, service.registry.models.update(id, expect, **changes))


def _move(service: Service, id: str, state: ModelState, request: Request) -> JSONResponse:
    record = service.registry.models.get(id)
    expect = expected(request, record)
    return _shown(service, service.registry.models.set_state(id, state, expect=expect))


def _shown(service: Service, record: Model) -> JSONResponse:
    parts = [artifact.part for artifact in service.registry.artifacts.of(record.id)]
    return shown(wire.model(record, parts), record)


def _provenance(router: APIRouter, service: Service, allowed: Depends) -> None:
    async def write(id: str, request: Request, *, new: bool) -> JSONResponse:
        body = await read(request, service, asked.Provenance)
        return await asyncio.to_thread(_provide, service, id, request, body, new)

    @router.post("/models/{id}/provenance", dependencies=[allowed])
    async def create(id: str, request: Request) -> JSONResponse:
        return await write(id, request, new=True)

    @router.put("/models/{id}/provenance", dependencies=[allowed])
    async def update(id: str, request: Request) -> JSONResponse:
        return await write(id, request, new=False)

    @router.get("/models/{id}/provenance")
    def get(id: str) -> JSONResponse:
        record = service.registry.models.get(id)
        return shown(wire.provenance(_provenance_of(record)), record)


def _provide(
    service: Service, id: str, request: Request, body: asked.Provenance, new: bool
) -> JSONResponse:
    record = service.registry.models.get(id)
    expect = expected(request, record)
    if new and "provenance" in record.extra:
        raise RecordConflict(f"model {id} has a provenance; update it instead")
    before = {} if new else _provenance_of(record)
    extra = {**record.extra, "provenance": {**before, **body.given()}}
    changed = service.registry.models.update(id, expect, extra=extra)
    return shown(wire.provenance(_provenance_of(changed)), changed)


def _provenance_of(record: Model) -> wire.Json:
    found: wire.Json | None = record.extra.get("provenance")
    if found is None:
        raise RecordAbsent(f"model {record.id} has no provenance")
    return found


def _not_offered(router: APIRouter) -> None:
    @router.post("/models/{id}/actions/{action}")
    def refuse(id: str, action: str) -> Response:
        advice = OBJECT_STORAGE.get(action)
        if advice is None:
            raise RecordAbsent(f"models have no action {action[:40]!r}")
        raise NotOffered(f"{action} needs OCI's object storage, which is not here; {advice}")
