"""Artifacts: of models, of their metadata, and of HOMOGENEOUS groups; up, down and head.

It must not know what an artifact holds or where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request, Response

from stacked.api.control.base import (
    CHANGE,
    POST,
    IfMatch,
    Served,
    bare,
    done,
    etag,
    expected,
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


def _upload(dependencies: list[Any]) -> Any:
    return {
        "status_code": 204,
        "response_class": Response,
        "dependencies": [*dependencies, Depends(_named)],
        "responses": success("etag", status=204, also=(411, 502)),
        "openapi_extra": RAW,
    }


_CREATE, _UPDATE = _upload(POST), _upload(CHANGE)
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


@models.post("/{id}/artifact", **_CREATE)
async def create_model_artifact(
    id: str, request: Request, service: Served, if_match: IfMatch = None
) -> Response:
    expect = _there(await asyncio.to_thread(service.registry.models.get, id), if_match)

    def fill(incoming: Incoming) -> Record:
        return service.catalogue.fill(id, incoming, file_name(request), expect)

    return await _stored(request, service, "max_artifact_bytes", fill)


@models.get("/{id}/artifact/content", **_GET)
@models.head("/{id}/artifact/content", name="head_model_artifact", **_HEAD)
def get_model_artifact_content(id: str, request: Request, service: Served) -> Response:
    return _sent(request, service, service.registry.models.get(id))


# -- groups -------------------------------------------------------------------------------


@groups.post("/{id}/artifact", **_CREATE)
async def create_model_group_artifact(
    id: str, request: Request, service: Served, if_match: IfMatch = None
) -> Response:
    expect = _there(await asyncio.to_thread(service.registry.groups.get, id), if_match)

    def attach(incoming: Incoming) -> Record:
        return service.catalogue.attach_to_group(id, incoming, file_name(request), expect)

    return await _stored(request, service, "max_artifact_bytes", attach)


@groups.get("/{id}/artifact/content", **_GET)
@groups.head("/{id}/artifact/content", name="head_model_group_artifact", **_HEAD)
def get_model_group_artifact_content(id: str, request: Request, service: Served) -> Response:
    return _sent(request, service, service.registry.groups.get(id))


# -- metadata -----------------------------------------------------------------------------


def _metadata_routes(kind: str) -> None:
    path = f"/{{id}}/{kind}Metadata/{{key}}/artifact"
    name = f"model_{kind}_metadatum_artifact"

    async def write(
        id: str, key: str, request: Request, service: Service, if_match: str | None, *, new: bool
    ) -> Response:
        expect = _there(await asyncio.to_thread(service.registry.models.get, id), if_match)
        part = f"{kind}Metadata/{key}"

        def attach(incoming: Incoming) -> Record:
            named = file_name(request) or key
            return service.catalogue.attach(id, part, incoming, named, expect, new=new)

        return await _stored(request, service, "max_body_bytes", attach)

    @models.post(path, name=f"create_{name}", **_CREATE)
    async def create(
        id: str, key: str, request: Request, service: Served, if_match: IfMatch = None
    ) -> Response:
        return await write(id, key, request, service, if_match, new=True)

    @models.put(path, name=f"update_{name}", **_UPDATE)
    async def update(
        id: str, key: str, request: Request, service: Served, if_match: IfMatch = None
    ) -> Response:
        return await write(id, key, request, service, if_match, new=False)

    @models.delete(path, name=f"delete_{name}", dependencies=CHANGE, **bare(204, "etag"))
    def delete(id: str, key: str, service: Served, if_match: IfMatch = None) -> Response:
        expect = expected(if_match, service.registry.models.get(id))
        return done(service.catalogue.detach(id, f"{kind}Metadata/{key}", expect))

    @models.get(f"{path}/content", name=f"get_{name}_content", **_GET)
    @models.head(f"{path}/content", name=f"head_{name}", **_HEAD)
    def get(id: str, key: str, request: Request, service: Served) -> Response:
        record = service.registry.models.get(id)
        return _sent(request, service, record, f"{kind}Metadata/{key}")


for _kind in ("custom", "defined"):
    _metadata_routes(_kind)
router.routes.extend([*models.routes, *groups.routes])


# -- bytes --------------------------------------------------------------------------------


def _there(record: R, if_match: str | None) -> R | None:
    """What the registry must find unchanged. Raises RecordAbsent where it is deleted already."""
    if record.state.value == "DELETED":
        raise RecordAbsent(f"{record.id} is deleted")
    return expected(if_match, record)


async def _stored(
    request: Request, service: Service, limit: str, keep: Callable[[Incoming], Record]
) -> Response:
    async with received(request, service, limit) as incoming:
        return done(await asyncio.to_thread(keep, incoming))


def _sent(request: Request, service: Service, record: Record, part: str = "") -> Response:
    artifact, file = service.catalogue.open(record.id, part)
    wanted = request.headers.get("range") if request.method == "GET" else None
    return download(artifact, file, etag(record), wanted)
