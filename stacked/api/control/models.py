"""The model catalogue: `/20190101/models`.

It must not know groups or deployments.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked, wire
from stacked.api.control.answers import read, shown
from stacked.api.lists import FILTERS, SORTS, listed
from stacked.errors import ParameterInvalid
from stacked.registry.states import ModelState
from stacked.service import Service


def model_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post("/models", dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        body = await read(request, service, asked.CreateModel)
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
        return shown(wire.model(record), record)

    @router.get("/models")
    def list_(request: Request) -> JSONResponse:
        names = {**FILTERS, "lifecycleState": ModelState}
        return listed(request, service.registry.list_models, SORTS, names, wire.model_summary)

    @router.get("/models/{id}")
    def get(id: str) -> JSONResponse:
        record = service.registry.get_model(id)
        return shown(wire.model(record), record)
