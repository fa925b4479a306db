"""Artifacts: of models, of their metadata, and of HOMOGENEOUS groups; up, down and head.

It must not know what an artifact holds or where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request, Response

from stacked.api.control.calls import (
    Action,
    Change,
    Read,
    Update,
    bare,
    done,
    etag,
    resource_router,
    success,
)
from stacked.api.downloads import download
from stacked.api.uploads import RAW, file_name, received
from stacked.errors import RecordAbsent
from stacked.registry.records import GroupRecord, Model, Record
from stacked.service import Service
from stacked.store import Incoming

R = TypeVar("R", Model, GroupRecord)

router = APIRouter()
models = resource_router("/models", "Models")
groups = resource_router("/modelGroups", "Model groups")

_HEADERS = ("etag", "content-disposition", "content-md5", "last-modified", "accept-ranges")
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


async def _named(
    name: Annotated[
        str | None,
        Header(
            alias="content-disposition",
            description='Such as `attachment; filename="adapter.zip"`',
        ),
    ] = None,
) -> None:
    """Declares what `file_name` reads."""


async def _ranged(
    range: Annotated[
        str | None, Header(description="`bytes=first-last`; any other form is all of it")
    ] = None,
) -> None:
    """Declares what `download` reads."""


_UPLOAD: Any = {
    "status_code": 204,
    "response_class": Response,
    "dependencies": [Depends(_named)],
    "responses": success("etag", status=204, also=(411, 502)),
    "openapi_extra": RAW,
}


_GET: Any = {
    "response_class": Response,
    "dependencies": [Depends(_ranged)],
    "responses": {
        200: {**success(*_HEADERS)[200], "content": _BYTES},
        206: {**success(*_HEADERS, "content-range")[200], "content": _BYTES},
        416: {},
    },
}
_HEAD = bare(200, *_HEADERS)


# -- models -------------------------------------------------------------------------------


@models.post("/{id}/artifact", **_UPLOAD)
async def create_model_artifact(id: str, request: Request, call: Action) -> Response:
    expect = _there(await asyncio.to_thread(call.registry.models.get, id), call)

    def fill(incoming: Incoming) -> Record:
        return call.service.catalogue.fill(id, incoming, file_name(request), expect)

    return await _stored(request, call.service, "max_artifact_bytes", fill)


@models.get("/{id}/artifact/content", **_GET)
@models.head("/{id}/artifact/content", name="head_model_artifact", **_HEAD)
def get_model_artifact_content(id: str, request: Request, call: Read) -> Response:
    return _sent(request, call.service, call.registry.models.get(id))


# -- groups -------------------------------------------------------------------------------


@groups.post("/{id}/artifact", **_UPLOAD)
async def create_model_group_artifact(id: str, request: Request, call: Action) -> Response:
    expect = _there(await asyncio.to_thread(call.registry.groups.get, id), call)

    def attach(incoming: Incoming) -> Record:
        return call.service.catalogue.attach_to_group(id, incoming, file_name(request), expect)

    return await _stored(request, call.service, "max_artifact_bytes", attach)


@groups.get("/{id}/artifact/content", **_GET)
@groups.head("/{id}/artifact/content", name="head_model_group_artifact", **_HEAD)
def get_model_group_artifact_content(id: str, request: Request, call: Read) -> Response:
    return _sent(request, call.service, call.registry.groups.get(id))


# -- metadata -----------------------------------------------------------------------------


def _metadata_routes(kind: str) -> None:
    path = f"/{{id}}/{kind}Metadata/{{key}}/artifact"
    name = f"model_{kind}_metadatum_artifact"

    async def write(id: str, key: str, request: Request, call: Change, *, new: bool) -> Response:
        expect = _there(await asyncio.to_thread(call.registry.models.get, id), call)
        part = f"{kind}Metadata/{key}"

        def attach(incoming: Incoming) -> Record:
            named = file_name(request) or key
            return call.service.catalogue.attach(id, part, incoming, named, expect, new=new)

        return await _stored(request, call.service, "max_body_bytes", attach)

    @models.post(path, name=f"create_{name}", **_UPLOAD)
    async def create(id: str, key: str, request: Request, call: Action) -> Response:
        return await write(id, key, request, call, new=True)

    @models.put(path, name=f"update_{name}", **_UPLOAD)
    async def update(id: str, key: str, request: Request, call: Update) -> Response:
        return await write(id, key, request, call, new=False)

    @models.delete(path, name=f"delete_{name}", **bare(204, "etag"))
    def delete(id: str, key: str, call: Update) -> Response:
        expect = call.expected(call.registry.models.get(id))
        return done(call.service.catalogue.detach(id, f"{kind}Metadata/{key}", expect))

    @models.get(f"{path}/content", name=f"get_{name}_content", **_GET)
    @models.head(f"{path}/content", name=f"head_{name}", **_HEAD)
    def get(id: str, key: str, request: Request, call: Read) -> Response:
        record = call.registry.models.get(id)
        return _sent(request, call.service, record, f"{kind}Metadata/{key}")


for _kind in ("custom", "defined"):
    _metadata_routes(_kind)
router.routes.extend([*models.routes, *groups.routes])


# -- bytes --------------------------------------------------------------------------------


def _there(record: R, call: Change) -> R | None:
    """The record that `if-match` expects. Raises RecordAbsent if it was deleted."""
    if record.state.value == "DELETED":
        raise RecordAbsent(f"{record.id} is deleted")
    return call.expected(record)


async def _stored(
    request: Request, service: Service, limit: str, keep: Callable[[Incoming], Record]
) -> Response:
    async with received(request, service, limit) as incoming:
        return done(await asyncio.to_thread(keep, incoming))


def _sent(request: Request, service: Service, record: Record, part: str = "") -> Response:
    artifact, file = service.catalogue.open(record.id, part)
    wanted = request.headers.get("range") if request.method == "GET" else None
    return download(artifact, file, etag(record), wanted)
