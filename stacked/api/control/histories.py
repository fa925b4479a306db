"""Version histories of model groups: `/20190101/modelGroupVersionHistory`, singular.

It must not know what the groups of a history are.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import done, expected, read, shown
from stacked.api.control.finished import HISTORY, finished
from stacked.api.gate import principal_of
from stacked.api.lists import FILTERS, SORTS, Names, listed
from stacked.registry import HISTORY as OCID
from stacked.registry import new_id
from stacked.registry.records import VersionHistory
from stacked.registry.states import HistoryState
from stacked.service import Service

_ALL = "/modelGroupVersionHistory"
_ONE = f"{_ALL}/{{id}}"
LIST_FILTERS: Names = {**FILTERS, "lifecycleState": HistoryState}


def history_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    _create_and_read(router, service, allowed)
    _change(router, service, allowed)


def _create_and_read(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post(_ALL, dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        body = await read(request, service, asked.CreateHistory)
        history = VersionHistory(
            id=new_id(OCID),
            display_name=body.display_name,
            description=body.description,
            latest_group_id=body.latest_model_group_id or None,
            compartment_id=body.compartment_id,
            project_id=body.project_id,
            created_by=principal_of(request.scope),
            tags=body.tags(),
        )
        record = await asyncio.to_thread(service.registry.create_version_history, history)
        return shown(wire.history(record), record)

    @router.get(_ALL)
    def list_(request: Request) -> JSONResponse:
        read_page = service.registry.list_version_histories
        return listed(request, read_page, SORTS, LIST_FILTERS, wire.history_summary)

    @router.get(_ONE)
    def get(id: str) -> JSONResponse:
        record = service.registry.get_version_history(id)
        return shown(wire.history(record), record)


def _change(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.put(_ONE, dependencies=[allowed])
    async def update(id: str, request: Request) -> JSONResponse:
        body = await read(request, service, asked.UpdateHistory)
        record = await asyncio.to_thread(service.registry.get_version_history, id)
        changed = await _write(service, request, record, body.changes(record.tags))
        return shown(wire.history(changed), changed)

    @router.post(f"{_ONE}/actions/changeCompartment", dependencies=[allowed])
    async def move(id: str, request: Request) -> Response:
        body = await read(request, service, asked.ChangeCompartment)
        record = await asyncio.to_thread(service.registry.get_version_history, id)
        changes = {"compartment_id": body.compartment_id}
        return done(await _write(service, request, record, changes))

    @router.delete(_ONE, dependencies=[allowed])
    def delete(id: str, request: Request) -> Response:
        registry = service.registry
        expect = expected(request, registry.get_version_history(id))
        registry.set_version_history_state(id, HistoryState.DELETING, expect=expect)
        gone = registry.set_version_history_state(id, HistoryState.DELETED)
        operation = "MODEL_GROUP_VERSION_HISTORY_DELETE"
        return done(gone, finished(registry, operation, "DELETED", HISTORY, gone), 202)


async def _write(
    service: Service, request: Request, record: VersionHistory, changes: Any
) -> VersionHistory:
    expect = expected(request, record)
    return await asyncio.to_thread(
        service.registry.update_version_history, record.id, expect, **changes
    )
