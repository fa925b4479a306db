"""Model groups: `/20190101/modelGroups`.

It must not know how a group is made live.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import done, expected, read, shown, tree_of
from stacked.api.control.finished import GROUP, finished
from stacked.api.gate import principal_of
from stacked.api.lists import FILTERS, SORTS, Names, listed
from stacked.errors import GroupInvalid, RecordConflict
from stacked.registry import GROUP as OCID
from stacked.registry import new_id
from stacked.registry.records import ModelGroup, Page, Query
from stacked.registry.states import GroupState, ModelState
from stacked.service import Service

LIST_FILTERS: Names = {
    **FILTERS,
    "modelGroupVersionHistoryId": "version_history_id",
    "lifecycleState": GroupState,
}
MEMBER_FILTERS: Names = {
    **{name: FILTERS[name] for name in ("id", "displayName", "createdBy")},
    "inferenceKey": "key",
    "lifecycleState": ModelState,
}


def group_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    _create_and_read(router, service, allowed)
    _change(router, service, allowed)
    _states(router, service, allowed)


def _create_and_read(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/modelGroups", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        tree = await tree_of(request, service)
        return await asyncio.to_thread(_create, service, tree, principal_of(request.scope))

    @router.get("/modelGroups")
    def list_(request: Request) -> JSONResponse:
        return listed(
            request, service.registry.list_groups, SORTS, LIST_FILTERS, wire.group_summary
        )

    @router.get("/modelGroups/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_group(id)
        return shown(wire.group(record), record)

    @router.get("/modelGroups/{id}/models")
    def models(id: str, request: Request) -> JSONResponse:
        def read_page(query: Query, **filters: Any) -> Page[Any]:
            return service.registry.list_group_models(id, query, **filters)

        return listed(request, read_page, SORTS, MEMBER_FILTERS, wire.group_model)


def _create(service: Service, tree: dict[str, Any], created_by: str) -> JSONResponse:
    if asked.NewGroup.model_validate(tree).create_type == "CREATE":
        wanted = _new(asked.CreateGroup.model_validate(tree), created_by)
    else:
        wanted = _clone(service, asked.CloneGroup.model_validate(tree), created_by)
    record = service.catalogue.create_group(wanted)
    work = finished(service.registry, "MODEL_GROUP_CREATE", "CREATED", GROUP, record)
    return shown(wire.group(record), record, work)


def _new(body: asked.CreateGroup, created_by: str) -> ModelGroup:
    return ModelGroup(
        id=new_id(OCID),
        display_name=body.display_name or _generated_name(),
        description=body.description,
        kind=body.model_group_details.type,
        base_model_id=body.model_group_details.base(),
        members=body.members(),
        custom_metadata=body.model_group_details.metadata(),
        version_history_id=body.model_group_version_history_id or None,
        version_label=body.version_label,
        compartment_id=body.compartment_id,
        project_id=body.project_id,
        created_by=created_by,
        tags=body.tags(),
    )


def _clone(service: Service, body: asked.CloneGroup, created_by: str) -> ModelGroup:
    """What the source is, but for what is modified; a clone of a history is its next version."""
    source = body.model_group_clone_source_details
    history = None
    origin_id = source.source_id
    if source.model_group_clone_source_type == "MODEL_GROUP_VERSION_HISTORY":
        history = origin_id
        origin_id = _latest(service, history)
    origin = service.registry.get_group(origin_id)
    if origin.state is GroupState.DELETED:
        raise RecordConflict(f"model group {origin.id} is deleted, and cannot be cloned")
    modified = source.modify_model_group_details or asked.Modified()
    patches = source.patch_model_group_member_model_details or asked.Patches()
    metadata = origin.custom_metadata
    details = modified.model_group_details
    if details is not None:
        _check_same_kind(details, origin)
        if details.custom_metadata_list is not None:
            metadata = details.metadata()
    return ModelGroup(
        id=new_id(OCID),
        display_name=modified.display_name or _generated_name(),
        description=modified.description or origin.description,
        kind=origin.kind,
        base_model_id=origin.base_model_id,
        members=tuple(asked.patched(origin.members, patches.items)),
        custom_metadata=metadata,
        version_history_id=modified.model_group_version_history_id or history,
        version_label=modified.version_label,
        source_group_id=origin.id,
        create_type="CLONE",
        compartment_id=body.compartment_id or origin.compartment_id,
        project_id=body.project_id or origin.project_id,
        created_by=created_by,
        tags={**origin.tags, **modified.tags()},
    )


def _latest(service: Service, history_id: str) -> str:
    latest = service.registry.get_version_history(history_id).latest_group_id
    if latest is None:
        raise RecordConflict(f"version history {history_id} has no model group to clone")
    return latest


def _check_same_kind(details: asked.GroupDetails, origin: ModelGroup) -> None:
    if details.type != origin.kind:
        raise GroupInvalid(f"a clone is of its source's type {origin.kind}, not {details.type}")
    if details.base_model_id not in (None, "", origin.base_model_id):
        raise GroupInvalid(
            f"a clone has its source's base {origin.base_model_id}; create a group for another one"
        )


def _change(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.put("/modelGroups/{id}", dependencies=[allowed])
    async def update(id: str, request: Request) -> JSONResponse:
        tree = await tree_of(request, service)
        return await asyncio.to_thread(_update, service, id, request, tree)

    @router.post("/modelGroups/{id}/actions/changeCompartment", dependencies=[allowed])
    async def move(id: str, request: Request) -> Response:
        body = await read(request, service, asked.ChangeCompartment)
        record = await asyncio.to_thread(service.registry.get_group, id)
        changes: Any = {"compartment_id": body.compartment_id}
        expect = expected(request, record)
        return done(await asyncio.to_thread(service.registry.update_group, id, expect, **changes))


def _update(service: Service, id: str, request: Request, tree: dict[str, Any]) -> JSONResponse:
    body = asked.UpdateGroup.model_validate(tree)
    record = service.registry.get_group(id)
    expect = expected(request, record)
    asked.check_mutable(tree, wire.group(record))
    changes: Any = body.changes(record.tags)
    changed = service.registry.update_group(id, expect, **changes)
    return shown(wire.group(changed), changed)


def _states(router: APIRouter, service: Service, allowed: Depends) -> None:
    def set_state(id: str, state: GroupState, request: Request) -> JSONResponse:
        registry = service.registry
        expect = expected(request, registry.get_group(id))
        changed = registry.set_group_state(id, state, expect=expect)
        # Clients of OCI's own tools look for a work request here too.
        work = finished(registry, "MODEL_GROUP_UPDATE", "UPDATED", GROUP, changed)
        return shown(wire.group(changed), changed, work)

    @router.post("/modelGroups/{id}/actions/activate", dependencies=[allowed])
    def activate(id: str, request: Request) -> JSONResponse:
        return set_state(id, GroupState.ACTIVE, request)

    @router.post("/modelGroups/{id}/actions/deactivate", dependencies=[allowed])
    def deactivate(id: str, request: Request) -> JSONResponse:
        return set_state(id, GroupState.INACTIVE, request)

    @router.delete("/modelGroups/{id}", dependencies=[allowed])
    def delete(id: str, request: Request) -> Response:
        expect = expected(request, service.registry.get_group(id))
        gone = service.catalogue.delete_group(id, expect)
        work = finished(service.registry, "MODEL_GROUP_DELETE", "DELETED", GROUP, gone)
        return done(gone, work, 202)


def _generated_name() -> str:
    return f"modelgroup-{datetime.now(UTC):%Y%m%d-%H%M%S}"
