"""Our own routes: health, the container's verbs for a group, and vLLM's two LoRA endpoints.

A route parses, calls the service and renders. Running a model is not here: see `gateway.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AfterValidator, ValidationError
from starlette.exceptions import HTTPException

from stacked.api.asked.adapters import LoadBody, LoadLoraBody, UnloadLoraBody
from stacked.api.control import control_routes
from stacked.api.errors import (
    INTERNAL,
    INTERNAL_CODE,
    fault_of,
    not_served,
    oci_code,
    openai_body,
    plain_body,
    status_of,
)
from stacked.api.openapi import openapi_routes
from stacked.api.targets import is_control, is_plain
from stacked.config import ServerConfig, is_loopback
from stacked.core import ModelId, check_key, check_model_id
from stacked.engine.openai import model_card
from stacked.errors import (
    BodyInvalid,
    KeyInvalid,
    KeyUnknown,
    NotAllowed,
    ParameterInvalid,
    SourceNotFound,
    StackedError,
)
from stacked.service import Service

# A key or model id in a path; the gateway has left the `/` and `%` in it coded.
Name = Annotated[str, AfterValidator(unquote)]


def create_routes(service: Service) -> FastAPI:
    """The app of everything that runs no model. Its errors have the shape of their path."""
    # The gateway takes the slash off the end of paths; a redirect would lose the body of a POST.
    app = FastAPI(
        title="Stacked", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    handle_errors(app)
    _health_routes(app, service)
    _card_route(app, service)
    _model_routes(app, service)
    _lora_routes(app, service)
    control_routes(app, service, Depends(_runtime_updates(service.config.server)))
    openapi_routes(app, service)
    return app


def _health_routes(app: FastAPI, service: Service) -> None:
    async def health() -> dict[str, Any]:
        active = service.active
        routing = active.serving.live.routing
        return {
            "status": "serving",
            "group": active.name,
            "generation": routing.generation,
            "models": len(routing.members) + 1,
        }

    own = service.config.server.health_path
    for path in sorted({"/health", "/ping", *([own] if own else [])}):
        app.get(path)(health)

    @app.get("/models/{name:path}/health")
    @app.get("/model/{name:path}/health")
    async def model_health(name: Name) -> dict[str, Any]:
        routing = service.routing
        route = routing.resolve(name)
        return {"status": "healthy", "model": route.label, "generation": route.generation}


def _card_route(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models/{name:path}")
    async def card(name: Name) -> dict[str, Any]:
        label = service.routing.resolve(name).label
        found = await model_card(service.openai_app, label)
        if found is None:  # it went between the two
            raise KeyUnknown(f"no model is served under {name[:255]!r}")
        return found


def _model_routes(app: FastAPI, service: Service) -> None:
    allowed = Depends(_runtime_updates(service.config.server))

    @app.post("/models/{name:path}", dependencies=[allowed])
    @app.post("/model/{name:path}", dependencies=[allowed])
    async def load(name: Name, body: Annotated[LoadBody | None, Body()] = None) -> dict[str, Any]:
        given = body or LoadBody()
        by_id = name.startswith("ocid1.")
        if not by_id and given.key not in (None, name):
            raise ParameterInvalid(f"the path names key {name!r}, the body key {given.key!r}")
        key = given.key if by_id else name
        if key is not None:
            check_key(key)
        route = None if given.source else await service.load_known(name, given.key)
        route = route or await service.load(
            given.source or _source_of(service, name),
            key=key,
            model_id=_ocid(name) if by_id else None,
        )
        return {
            "status": "loaded",
            "key": route.key,
            "modelId": route.model_id,
            "digest": route.digest,
            "generation": route.generation,
        }

    @app.delete("/models/{name:path}", dependencies=[allowed])
    @app.delete("/model/{name:path}", dependencies=[allowed])
    async def remove(name: Name) -> JSONResponse:
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
        on = is_loopback(server.host) or server.auth.oci is not None

    def check() -> None:
        if not on:
            raise NotAllowed(
                "loading and removing adapters over HTTP is off here; "
                "set server.runtime_updates: true to allow it"
            )

    return check


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


def handle_errors(app: FastAPI) -> None:
    """Every error is answered in the shape of its path."""
    app.exception_handler(StackedError)(_stacked_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(ValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_internal_error)


async def _stacked_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StackedError)
    return _render(request, oci_code(error, request.url.path), str(error), status_of(error))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return await _stacked_error(request, BodyInvalid("the body is not valid JSON"))
    missing, sentence = fault_of(errors)
    if missing and is_control(request.url.path):
        return _render(request, "MissingParameter", sentence, 400)
    return await _stacked_error(request, ParameterInvalid(sentence))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    absent = "NotAuthorizedOrNotFound" if is_control(request.url.path) else "NotFound"
    codes = {404: absent, 405: "MethodNotAllowed"}
    said = not_served(request.method, request.scope["path"], error.status_code)
    message = said or str(error.detail)
    code = codes.get(error.status_code, "Error")
    return _render(request, code, message, error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    return _render(request, INTERNAL_CODE, INTERNAL, 500)


def _render(
    request: Request,
    code: str,
    message: str,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    plain = is_plain(request.url.path)
    body = plain_body(code, message) if plain else openai_body(code, message, status)
    return JSONResponse(body, status_code=status, headers=headers)
