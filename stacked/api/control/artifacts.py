"""Artifacts: of models, of their metadata, and of HOMOGENEOUS groups; up, down and head.

It must not know what an artifact holds or where it stands.
"""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends

from stacked.api import downloads, wire
from stacked.api.control.answers import done, expected, kept
from stacked.api.uploads import file_name, received
from stacked.registry.records import Record
from stacked.service import Service

_MODEL = "/models/{id}/artifact"
_GROUP = "/modelGroups/{id}/artifact"


def artifact_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    _of_models(router, service, allowed)
    _of_groups(router, service, allowed)
    for kind in ("customMetadata", "definedMetadata"):
        _of_metadata(router, service, allowed, kind)


def _of_models(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post(_MODEL, dependencies=[allowed])
    async def create(id: str, request: Request) -> Response:
        record = kept(await asyncio.to_thread(service.registry.models.get, id))
        expect = expected(request, record)
        server = service.config.server
        limit, setting = server.max_artifact_bytes, "server.max_artifact_bytes"
        async with received(request, service.catalogue, limit, setting) as incoming:
            name = file_name(request)
            fill = partial(service.catalogue.fill, id, incoming, name, expect)
            return done(await asyncio.to_thread(fill))

    @router.get(f"{_MODEL}/content")
    @router.head(f"{_MODEL}/content")
    def get(id: str, request: Request) -> Response:
        return _download(service, request, service.registry.models.get(id))


def _of_groups(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post(_GROUP, dependencies=[allowed])
    async def create(id: str, request: Request) -> Response:
        record = kept(await asyncio.to_thread(service.registry.groups.get, id))
        expect = expected(request, record)
        server = service.config.server
        limit, setting = server.max_artifact_bytes, "server.max_artifact_bytes"
        async with received(request, service.catalogue, limit, setting) as incoming:
            name = file_name(request)
            attach = partial(service.catalogue.attach_to_group, id, incoming, name, expect)
            return done(await asyncio.to_thread(attach))

    @router.get(f"{_GROUP}/content")
    @router.head(f"{_GROUP}/content")
    def get(id: str, request: Request) -> Response:
        return _download(service, request, service.registry.groups.get(id))


def _of_metadata(router: APIRouter, service: Service, allowed: Depends, kind: str) -> None:
    path = f"/models/{{id}}/{kind}/{{key}}/artifact"

    async def write(id: str, key: str, request: Request, *, new: bool) -> Response:
        record = kept(await asyncio.to_thread(service.registry.models.get, id))
        expect = expected(request, record)
        part = wire.metadata_part(kind, key)
        limit, setting = service.config.server.max_body_bytes, "server.max_body_bytes"
        async with received(request, service.catalogue, limit, setting) as incoming:
            name = file_name(request) or key
            attach = partial(service.catalogue.attach, id, part, incoming, name, expect, new=new)
            return done(await asyncio.to_thread(attach))

    @router.post(path, dependencies=[allowed])
    async def create(id: str, key: str, request: Request) -> Response:
        return await write(id, key, request, new=True)

    @router.put(path, dependencies=[allowed])
    async def update(id: str, key: str, request: Request) -> Response:
        return await write(id, key, request, new=False)

    @router.delete(path, dependencies=[allowed])
    def delete(id: str, key: str, request: Request) -> Response:
        expect = expected(request, service.registry.models.get(id))
        return done(service.catalogue.detach(id, wire.metadata_part(kind, key), expect))

    @router.get(f"{path}/content")
    @router.head(f"{path}/content")
    def get(id: str, key: str, request: Request) -> Response:
        record = service.registry.models.get(id)
        return _download(service, request, record, wire.metadata_part(kind, key))


def _download(service: Service, request: Request, record: Record, part: str = "") -> Response:
    artifact, file = service.catalogue.open(record.id, part)
    return downloads.download(artifact, file, wire.etag(record), request.headers.get("range"))
