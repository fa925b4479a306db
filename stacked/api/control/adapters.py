"""Adapters by digest: whether the store has one, and one that is sent to it.

What `stacked update` does with adapters of its own machine. It must not know models or groups.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from fastapi.params import Depends

from stacked.api.uploads import received
from stacked.core import Digest, check_digest
from stacked.errors import AdapterAbsent, ParameterInvalid
from stacked.service import Service

_PATH = "/stacked/adapters/{digest}"


def adapter_routes(app: FastAPI, service: Service, allowed: Depends) -> None:
    @app.get(_PATH, status_code=204, dependencies=[allowed])
    def held(digest: str) -> None:
        """A read, but one that hashes the files: for those alone who may send them."""
        if not service.catalogue.store.holds(_digest(digest)):
            raise AdapterAbsent(f"adapter {digest} is not here; send it: PUT, a zip as the body")

    @app.put(_PATH, status_code=204, dependencies=[allowed])
    async def send(digest: str, request: Request) -> None:
        announced = _digest(digest)
        limit, setting = service.config.server.max_artifact_bytes, "server.max_artifact_bytes"
        async with received(request, service.catalogue, limit, setting) as incoming:
            await asyncio.to_thread(service.catalogue.upload, announced, incoming)


def _digest(text: str) -> Digest:
    try:
        return check_digest(text)
    except ValueError as error:
        raise ParameterInvalid(f"digest: {error}"[:200]) from error
