"""Adapters and other models by digest: whether the store has one, and uploading one.

`stacked update` sends those of its own machine with these.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AfterValidator

from stacked.api.control.calls import CHANGE, Route, Served
from stacked.api.uploads import RAW, received
from stacked.core import Digest, check_digest
from stacked.errors import AdapterAbsent

router = APIRouter(
    prefix="/stacked/adapters",
    tags=["Stacked"],
    route_class=Route,
    generate_unique_id_function=lambda route: route.name,
)

AdapterDigest = Annotated[str, AfterValidator(check_digest)]


@router.get("/{digest}", dependencies=CHANGE, status_code=204, responses={400: {}})
def has_adapter(digest: AdapterDigest, service: Served) -> None:
    """Whether the store has a whole adapter, so that it need not be sent.

    It hashes the files, so that it is limited to those who may upload.
    """
    if not service.catalogue.holds(Digest(digest)):
        raise AdapterAbsent(f"content {digest} is not here; send it: PUT, a zip as the body")


@router.put(
    "/{digest}",
    dependencies=CHANGE,
    status_code=204,
    responses={411: {}},
    openapi_extra=RAW,
)
async def send_adapter(digest: AdapterDigest, request: Request, service: Served) -> None:
    """Upload an adapter as a zip; a model whose `source` is its digest retains it."""
    async with received(request, service, "max_artifact_bytes") as incoming:
        await asyncio.to_thread(service.catalogue.upload, Digest(digest), incoming)
