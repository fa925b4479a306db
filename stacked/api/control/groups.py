"""Model groups: `/20190101/modelGroups`.

It must not know how a group is made live.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import shown, tree_of, uri
from stacked.api.lists import FILTERS, SORTS, listed
from stacked.errors import GroupInvalid
from stacked.registry.records import Affected, ModelGroup, Page, Query, WorkRequest
from stacked.registry.states import GroupState, ModelState
from stacked.service import Service


def group_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/modelGroups", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        tree = await tree_of(request, service)
        kind = asked.NewGroup.model_validate(tree).create_type
        record = await (_create if kind == "CREATE" else _clone)(service, tree)
        work = await asyncio.to_thread(_made, service, record)
        return shown(wire.group(record), record, {"opc-work-request-id": work.id})

    @router.get("/modelGroups")
    def list_(request: Request) -> JSONResponse:
        history = {"modelGroupVersionHistoryId": "version_history_id"}
        names = {**FILTERS, **history, "lifecycleState": GroupState}
        return listed(request, service.registry.list_groups, SORTS, names, wire.group_summary)

    @router.get("/modelGroups/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_group(id)
        return shown(wire.group(record), record)

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
    what = Affected("CREATED", "data-science-model-group", record.id, uri("modelGroups", record))
    work = registry.open_work_request(
        "MODEL_GROUP_CREATE", [what], compartment_id=record.compartment_id
    )
    registry.advance(work.id, 0.0)
    return registry.succeed(work.id, f"group {record.display_name!r} was created")


def _generated_name() -> str:
    return f"modelgroup-{datetime.now(UTC):%Y%m%d-%H%M%S}"
