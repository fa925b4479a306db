"""Doubles behind the gateway: a service of names alone, and apps that tell what reached them.

They hold no model and no engine; what vLLM does with a request is not theirs to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope

from stacked.api.errors import handle_errors
from stacked.api.gateway import Gateway
from stacked.callers import Caller, called_by
from stacked.config import ServerConfig
from stacked.core import ModelId
from stacked.engine.openai import selected
from stacked.errors import KeyUnknown
from stacked.groups.routing import Route
from stacked.service import Service
from stacked.serving.bounds import check_bounds
from stacked.serving.door import Call, Door
from stacked.serving.targets import Target

KEYS = {"a": "a", "meta-llama/L (1)": "meta-llama/L (1)", "größe": "größe", "base": "base"}


class Double:
    """A service whose models are names alone; it keeps what each request was admitted by."""

    def __init__(self, app: Any, **server: Any) -> None:
        self.config = SimpleNamespace(server=ServerConfig(**server))
        self.names: dict[str, str] = {}
        self.use(app)

    def use(self, app: Any) -> None:
        self.app = app
        server = self.config.server
        self.door = Door(
            app,
            unknown_parameters=server.unknown_parameters,
            max_tokens=server.limits.max_tokens,
        )

    async def opened(self, after: int) -> None: ...

    def admit(self, target: Target, scope: Any, body: bytes, end: Callable[[], None]) -> Any:
        call = Call.read(target, scope, body)
        self.names = call.names
        for name in self.names.values():
            if name not in KEYS:
                raise KeyUnknown(f"{name!r} is not here")
        key = next(iter(self.names.values()), "base")
        route = Route(key, key, ModelId("ocid1.x.y.z"), None, None, 1)
        sequences = check_bounds(call.tree, self.config.server.limits)
        return route, nullcontext(), partial(self.door.answer, call, route), sequences

    async def look(self) -> None:
        """There is no engine to look into."""


class ByName:
    """A gate that believes what the header `who` says."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self._callers = callers

    async def authenticate(self, scope: Scope, receive: Receive, **_: Any) -> Receive:
        scope.update(called_by(self._callers[Headers(scope=scope)["who"]]))
        return receive


class Asked(BaseModel):
    """What the double declares of its bodies, as vLLM does."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    stream: bool = False
    max_tokens: int | None = None


def vllm() -> FastAPI:
    """An app with the shapes of vLLM's: what it was asked, streams, and its framework's errors."""
    app = FastAPI()

    @app.post("/tokenize")
    @app.post("/invocations")
    async def seen(request: Request) -> JSONResponse:
        selection = selected.get()
        return JSONResponse(
            {
                "path": request.url.path,
                "model": selection.label if selection else None,
                "headers": dict(request.headers),
                "body": json.loads(await request.body() or b"null"),
            }
        )

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def declared(request: Request, asked: Asked) -> JSONResponse:
        return await seen(request)

    @app.get("/v1/models")
    async def models() -> dict[str, list[str]]:
        return {"data": []}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse("one 1")

    @app.post("/v1/messages")
    async def events() -> StreamingResponse:
        return StreamingResponse(iter([b"data: 1\n\n"]), media_type="text/event-stream")

    return app


def ours() -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    handle_errors(app)

    @app.get("/v1/models")
    async def models() -> dict[str, list[str]]:
        return {"data": []}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse("one 1")

    @app.post("/stacked/echo")
    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "serving"}

    @app.api_route("/{rest:path}", methods=["GET", "POST", "DELETE"])
    async def rest(rest: str, request: Request) -> JSONResponse:
        return JSONResponse({"ours": request.scope["path"]}, status_code=404)

    return app


def gateway(double: Double, app: ASGIApp | None = None) -> Gateway:
    return Gateway(cast(Service, double), app or ours())


def client_of(double: Double, app: ASGIApp | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=gateway(double, app), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here")
