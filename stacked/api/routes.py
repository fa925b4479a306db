"""Our own routes: health, the container's verbs for a group, and vLLM's two LoRA endpoints.

A route parses, calls the service and renders. Running a model is not here: see `admission.py`.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from stacked.api.control import control_routes
from stacked.api.errors import openai_body, plain_body, status_of
from stacked.api.targets import is_plain
from stacked.config import ServerConfig
from stacked.core import ModelId, check_key, check_model_id
from stacked.errors import KeyInvalid, NotAllowed, ParameterInvalid, SourceNotFound, StackedError
from stacked.service import Service


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoadBody(_Strict):
    """`POST /models/{id}`: where the adapter is, and the inference key it gets."""

    source: str | None = Field(default=None, min_length=1)
    key: str | None = None


class LoadLoraBody(_Strict):
    """vLLM's own shape of `/v1/load_lora_adapter`."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLoraBody(_Strict):
    """vLLM's own shape of `/v1/unload_lora_adapter`; the id is vLLM's and means nothing here."""

    lora_name: str
    lora_int_id: int | None = None


def create_routes(service: Service) -> FastAPI:
    """The app of everything that runs no model. Its errors have the shape of their path."""
    app = FastAPI(title="Stacked", openapi_url=None, docs_url=None, redoc_url=None)
    app.exception_handler(StackedError)(_stacked_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    _health_routes(app, service)
    _model_routes(app, service)
    _lora_routes(app, service)
    control_routes(app, service, Depends(_runtime_updates(service.config.server)))
    return app


def _health_routes(app: FastAPI, service: Service) -> None:
    async def health() -> dict[str, Any]:
        routing = service.routing
        return {
            "status": "serving",
            "group": service.config.group.name,
            "generation": routing.generation,
            "models": len(routing.members) + 1,
        }

    own = service.config.server.health_path
    for path in sorted({"/health", "/ping", *([own] if own else [])}):
        app.get(path)(health)

    @app.get("/models/{name}/health")
    @app.get("/model/{name}/health")
    async def model_health(name: str) -> dict[str, Any]:
        routing = service.routing
        route = routing.resolve(name)
        return {"status": "healthy", "model": route.label, "generation": route.generation}


def _model_routes(app: FastAPI, service: Service) -> None:
    allowed = Depends(_runtime_updates(service.config.server))

    @app.post("/models/{name}", dependencies=[allowed])
    @app.post("/model/{name}", dependencies=[allowed])
    async def load(name: str, body: Annotated[LoadBody | None, Body()] = None) -> dict[str, Any]:
        given = body or LoadBody()
        by_id = name.startswith("ocid1.")
        if not by_id and given.key not in (None, name):
            raise ParameterInvalid(f"the path names key {name!r}, the body key {given.key!r}")
        key = given.key if by_id else name
        route = await service.load(
            given.source or _source_of(service, name),
            key=None if key is None else check_key(key),
            model_id=_ocid(name) if by_id else None,
        )
        return {
            "status": "loaded",
            "key": route.key,
            "modelId": route.model_id,
            "digest": route.digest,
            "generation": route.generation,
        }

    @app.delete("/models/{name}", dependencies=[allowed])
    @app.delete("/model/{name}", dependencies=[allowed])
    async def remove(name: str) -> JSONResponse:
        freed = await service.unload(name)
        status = "removed" if freed else "draining"
        return JSONResponse({"status": status}, status_code=200 if freed else 202)


def _lora_routes(app: FastAPI, service: Service) -> None:
    allowed = Depends(_runtime_updates(service.config.server))

    @app.post("/v1/load_lora_adapter", dependencies=[allowed])
    async def load_lora(body: LoadLoraBody) -> PlainTextResponse:
        if body.load_inplace:
            raise ParameterInvalid(
                "load_inplace is not served: it mixes two adapters in answers that are under way. "
                "Remove the key first, or update the group LIVE"
            )
        name = body.lora_name
        by_id = name.startswith("ocid1.")
        await service.load(
            body.lora_path,
            key=None if by_id else check_key(name),
            model_id=_ocid(name) if by_id else None,
        )
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", dependencies=[allowed])
    async def unload_lora(body: UnloadLoraBody) -> PlainTextResponse:
        freed = await service.unload(body.lora_name)
        said = "removed successfully" if freed else "is draining; requests still use it"
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' {said}.")


def _runtime_updates(server: ServerConfig) -> Any:
    """A dependency that refuses administrative verbs where they are off."""
    on = server.runtime_updates
    if on is None:
        on = _is_loopback(server.host)

    def check() -> None:
        if not on:
            raise NotAllowed(
                "loading and removing adapters over HTTP is off here; "
                "set server.runtime_updates: true to allow it"
            )

    return check


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _source_of(service: Service, name: str) -> str:
    """Where an adapter stands that is asked for by name alone: `<root>/<name>`."""
    if "/" in name or name in {".", ".."}:
        raise SourceNotFound(f"{name!r} is not the name of a directory")
    for root in service.config.server.adapter_roots:
        place = f"{root}/{name}"
        if os.path.isdir(place):
            return place
    raise SourceNotFound(
        f"no adapter directory {name!r} under server.adapter_roots; "
        'send {"source": "…"} or set the roots'
    )


def _ocid(name: str) -> ModelId:
    try:
        return check_model_id(name)
    except ValueError as error:
        raise KeyInvalid(str(error)) from error


async def _stacked_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StackedError)
    return _render(request, error.code, str(error), status_of(error))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _render(request, "BodyInvalid", "the body is not valid JSON", 400)
    place = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return _render(request, "ParameterInvalid", f"{place}: {first['msg']}", 400)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "NotFound", 405: "MethodNotAllowed"}
    said = {404: f"there is nothing at {request.method} {request.url.path}"}
    message = said.get(error.status_code, str(error.detail))
    return _render(request, codes.get(error.status_code, "Error"), message, error.status_code)


def _render(request: Request, code: str, message: str, status: int) -> JSONResponse:
    plain = is_plain(request.url.path)
    body = plain_body(code, message) if plain else openai_body(code, message, status)
    return JSONResponse(body, status_code=status)
