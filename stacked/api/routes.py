"""Our own routes: health, the container's verbs for a group, and vLLM's two LoRA endpoints.

A route parses, calls the service and renders. Running a model is not here: see `gateway.py`.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, FastAPI, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field

from stacked.api.control import control_routes
from stacked.api.control.base import ResponseModel
from stacked.api.control.calls import CHANGE, ModelName, Served, success
from stacked.api.errors import handle_errors
from stacked.api.open_inference import router as open_inference
from stacked.api.openapi import openapi_routes
from stacked.api.results import router as results
from stacked.callers import caller_of
from stacked.core import ModelId, check_key, check_model_id
from stacked.engine.openai import model_cards
from stacked.errors import KeyInvalid, KeyUnknown, ParameterInvalid, SourceNotFound
from stacked.groups.routing import Routing
from stacked.service import Service

router = APIRouter(generate_unique_id_function=lambda route: route.name)


class Health(ResponseModel):
    """What answers, and how much of it."""

    status: Literal["serving"] = "serving"
    group: str
    generation: int
    models: int


class Probe(ResponseModel):
    """The answer to a platform's probe."""

    status: Literal["live", "ready"]


class ModelHealth(ResponseModel):
    status: Literal["healthy"] = "healthy"
    model: str
    generation: int


class _Strict(BaseModel):
    """Unknown fields are refused: a misspelled one would be ignored."""

    model_config = ConfigDict(extra="forbid")


class LoadBody(_Strict):
    """Where the adapter is, and the inference key it gets."""

    source: str | None = Field(default=None, min_length=1)
    key: str | None = None


class LoadedModel(ResponseModel):
    """An adapter that was loaded alone."""

    status: Literal["loaded"] = "loaded"
    key: str | None
    model_id: str
    digest: str
    generation: int


class RemovedModel(ResponseModel):
    status: Literal["removed", "draining"]


class LoadLoraBody(_Strict):
    """vLLM's own shape."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLoraBody(_Strict):
    """vLLM's own shape; the id is vLLM's and means nothing here."""

    lora_name: str
    lora_int_id: int | None = None


def create_routes(service: Service) -> FastAPI:
    """The app of everything but inference. Its errors have the shape of their path."""
    # The gateway removes trailing slashes; a redirect would lose the body of a POST.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    handle_errors(app)
    own = service.config.server.health_path
    for path in sorted({"/health", "/ping", *([own] if own else [])}):
        name = f"health_{path.strip('/').replace('/', '_')}"
        app.get(path, tags=["Health"], operation_id=name)(health)
    app.include_router(router)
    app.include_router(open_inference)
    app.include_router(results)
    control_routes(app, service)
    openapi_routes(app, service)
    return app


async def health(service: Served) -> Health:
    """Whether requests are answered."""
    active = service.ready
    routing = active.serving.live.routing
    models = len(routing.members) + (routing.base is not None)
    return Health(group=active.name, generation=routing.generation, models=models)


@router.get("/health/live", name="health_live", tags=["Health"])
async def live(service: Served) -> Probe:
    """Whether this process can still come to serve; if not, only another start helps."""
    service.check_live()
    return Probe(status="live")


@router.get("/health/ready", name="health_ready", tags=["Health"])
async def ready(service: Served) -> Probe:
    """Whether requests may be sent here now: not while it starts, restarts or stops."""
    _ = service.ready
    return Probe(status="ready")


@router.get("/metrics", name="metrics", include_in_schema=False)
async def metrics(
    service: Served,
    accept: Annotated[str, Header()] = "",
    names: Annotated[list[str] | None, Query(alias="name[]")] = None,
) -> Response:
    """Every metric, of vLLM's and ours, also while there is no engine; or those of some names."""
    await service.look()
    encode, media_type = choose_encoder(accept)
    registry = REGISTRY if names is None else REGISTRY.restricted_registry(names)
    return Response(encode(registry), media_type=media_type)


@router.get(
    "/models/{name:path}/health",
    name="models_health",
    tags=["Health"],
    responses=success(also=(400,)),
)
@router.get(
    "/model/{name:path}/health",
    name="model_health",
    tags=["Health"],
    responses=success(also=(400,)),
)
async def model_health(name: ModelName, service: Served) -> ModelHealth:
    """Whether a model is served."""
    serving = service.active.serving
    route = serving.live.routing.resolve(name)
    serving.check_ready(route)
    return ModelHealth(model=route.label, generation=route.generation)


@router.get("/v1/models", include_in_schema=False)
async def list_served_models(service: Served, request: Request) -> dict[str, Any]:
    """The models that a caller may use, as OpenAI's."""
    routing = service.routing.seen_by(caller_of(request.scope).keys)
    return {"object": "list", "data": await _cards(service, routing)}


@router.get("/v1/models/{name:path}", tags=["Stacked"], responses=success(also=(400,)))
async def show_served_model(name: ModelName, service: Served, request: Request) -> dict[str, Any]:
    """One served model by key or id, as OpenAI's."""
    routing = service.routing.seen_by(caller_of(request.scope).keys)
    label = routing.resolve(name).label
    for card in await _cards(service, routing):
        if card["id"] == label:
            return card
    raise KeyUnknown(f"no model is served under {name[:255]!r}")  # removed between the two calls


async def _cards(service: Service, routing: Routing[Any]) -> list[dict[str, Any]]:
    """The rows of the models of a routing table."""
    labels = {route.label for route in routing}
    cards = [card for card in await model_cards(service.vllm.app) if card["id"] in labels]
    for card in cards:
        if card["parent"] not in labels:  # the base's key, for who may not know it
            card["parent"] = None
    return cards


_ADAPTER: dict[str, Any] = {"tags": ["Adapters one by one"], "dependencies": CHANGE}


@router.post("/models/{name:path}", name="load_models", responses=success(also=(502,)), **_ADAPTER)
@router.post("/model/{name:path}", name="load_model", responses=success(also=(502,)), **_ADAPTER)
async def load(
    name: ModelName, service: Served, body: Annotated[LoadBody | None, Body()] = None
) -> LoadedModel:
    """Load an adapter under a key or id."""
    given = body or LoadBody()
    by_id = name.startswith("ocid1.")
    if not by_id and given.key not in (None, name):
        raise ParameterInvalid(f"the path names key {name!r}, the body key {given.key!r}")
    key = given.key if by_id else name
    if key is not None:
        check_key(key)
    route = None if given.source else await service.runtime.load_known(name, given.key)
    route = route or await service.runtime.load(
        given.source or _source_of(service, name),
        key=key,
        model_id=_ocid(name) if by_id else None,
    )
    return LoadedModel.of(route)


_DRAINING: dict[int | str, Any] = {202: {"model": RemovedModel, "description": "It is draining"}}


@router.delete("/models/{name:path}", name="remove_models", responses=_DRAINING, **_ADAPTER)
@router.delete("/model/{name:path}", name="remove_model", responses=_DRAINING, **_ADAPTER)
async def remove(name: ModelName, service: Served, response: Response) -> RemovedModel:
    """Stop serving a key or id."""
    if await service.runtime.unload(name):
        return RemovedModel(status="removed")
    response.status_code = 202
    return RemovedModel(status="draining")


@router.post(
    "/v1/load_lora_adapter",
    response_class=PlainTextResponse,
    responses=success(also=(502,)),
    **_ADAPTER,
)
async def load_lora_adapter(body: LoadLoraBody, service: Served) -> PlainTextResponse:
    """Load an adapter, as vLLM's own endpoint does."""
    if body.load_inplace:
        raise ParameterInvalid(
            "load_inplace is not served: it mixes two adapters in answers that are under way. "
            "Remove the key first, or update the group LIVE"
        )
    name = body.lora_name
    by_id = name.startswith("ocid1.")
    await service.runtime.load(
        body.lora_path,
        key=None if by_id else check_key(name),
        model_id=_ocid(name) if by_id else None,
    )
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse, **_ADAPTER)
async def unload_lora_adapter(body: UnloadLoraBody, service: Served) -> PlainTextResponse:
    """Unload an adapter, as vLLM's own endpoint does."""
    freed = await service.runtime.unload(body.lora_name)
    said = "removed successfully" if freed else "is draining; requests still use it"
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' {said}.")


def _source_of(service: Service, name: str) -> str:
    """The directory of an adapter that is only named: `<root>/<name>`."""
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
