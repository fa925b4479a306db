"""What control-plane routes share that are not yet written as `base.py` has it.

It must not know any one resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from stacked.api import wire
from stacked.api.bodies import parse_object, read_body
from stacked.api.control import base
from stacked.api.control.base import done
from stacked.errors import RecordAbsent
from stacked.registry.records import Record, WorkRequest
from stacked.service import Service

__all__ = ["done", "expected", "kept", "read", "shown", "tree_of", "url_of"]

B = TypeVar("B", bound=BaseModel)
K = TypeVar("K", bound=Record)


async def tree_of(request: Request, service: Service) -> dict[str, Any]:
    """The body as an object, whatever its content type says."""
    limit = service.config.server.max_body_bytes
    declared = request.headers.get("content-length")
    return parse_object(await read_body(request.receive, limit, declared))


async def read(request: Request, service: Service, kind: type[B]) -> B:
    return kind.model_validate(await tree_of(request, service))


def expected(request: Request, record: K) -> K | None:
    return base.expected(request.headers.get("if-match"), record)


def kept(record: K) -> K:
    """The record, unless it is deleted: then nothing more can be done to it."""
    state: Any = getattr(record, "state", None)
    if state is not None and state.value == "DELETED":
        raise RecordAbsent(f"{record.id} is deleted")
    return record


def shown(
    body: wire.Json, record: Record | WorkRequest, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(body, headers={"etag": wire.etag(record), **(headers or {})})


def url_of(request: Request) -> str:
    return str(request.base_url).rstrip("/")
