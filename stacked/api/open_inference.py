"""The Open Inference Protocol's routes that run no model: server, models, readiness.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from stacked.api.control.calls import ModelName, Served, success
from stacked.callers import caller_of
from stacked.groups.routing import Route
from stacked.service import Service

if TYPE_CHECKING:
    from stacked.models.engine import ModelHandle

router = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    generate_unique_id_function=lambda route: f"inference_{route.name}",
)


@router.get("")
async def server() -> dict[str, Any]:
    """What this server is."""
    return {"name": "stacked", "version": version("stacked"), "extensions": []}


@router.get("/health/live")
async def live(service: Served) -> dict[str, bool]:
    """Whether this process can still come to serve."""
    service.check_live()
    return {"live": True}


@router.get("/health/ready")
async def ready(service: Served) -> dict[str, bool]:
    """Whether requests may be sent here now."""
    _ = service.active
    return {"ready": True}


@router.get("/models")
async def models(service: Served, request: Request) -> dict[str, list[str]]:
    """The inference keys that a caller may use."""
    routing = service.models.live.routing.seen_by(caller_of(request.scope).keys)
    return {"models": [route.label for route in routing]}


@router.get("/models/{name:path}/ready", responses=success(also=(400,)))
async def model_ready(name: ModelName, service: Served, request: Request) -> dict[str, Any]:
    """Whether a model can answer now."""
    route = _route(name, service, request)
    service.models.check_ready(route)
    return {"name": route.label, "ready": True}


@router.get("/models/{name:path}", responses=success(also=(400,)))
async def model(name: ModelName, service: Served, request: Request) -> dict[str, Any]:
    """The inputs and outputs of a model."""
    route = _route(name, service, request)
    assert route.handle is not None, "there is no base"
    return route.handle.described(route.label)


def _route(name: str, service: Service, request: Request) -> Route[ModelHandle]:
    return service.models.live.routing.seen_by(caller_of(request.scope).keys).resolve(name)
