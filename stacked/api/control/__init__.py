"""The control plane under `/20190101`: models, groups, the deployment, LIVE updates, their work.

A route reads, asks the service or its registry, and renders through `wire`. It must not know how
a group is made live.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from stacked.api import asked
from stacked.api.control import (
    adapters,
    artifacts,
    groups,
    histories,
    models,
    surroundings,
    version_sets,
    work_requests,
)
from stacked.api.control.base import Route
from stacked.api.control.deployments import deployment_routes
from stacked.api.retry_tokens import RetryTokens
from stacked.api.targets import PREFIX
from stacked.errors import UpdateNotLive
from stacked.service import Service


def control_routes(app: FastAPI, service: Service, allowed: Depends) -> None:
    """Add the control plane to the app. `allowed` refuses writing verbs where they are off."""
    app.state.retry_tokens = RetryTokens(
        lambda: service.registry, service.config.server.max_body_bytes
    )
    router = APIRouter(prefix=PREFIX, route_class=Route)
    deployment_routes(router, service, allowed)
    app.include_router(router)
    resources = (
        models,
        artifacts,
        groups,
        histories,
        work_requests,
        version_sets,
        surroundings,
        adapters,
    )
    for resource in resources:
        app.include_router(resource.router)
    _own(app, service)


def _own(app: FastAPI, service: Service) -> None:
    """What OCI has no words for. Errors have our own codes here."""

    @app.get("/stacked/status")
    async def status() -> JSONResponse:
        return JSONResponse(await service.status())

    @app.post("/stacked/check", status_code=204)
    def check(body: asked.Settings) -> None:
        """Whether a file's engine settings are those in use; the settings themselves stay here."""
        if body.engine is None:
            return
        held = service.registry.deployments.get(service.deployment_id).configuration
        names = asked.differing(body.engine, held.get("engine", {}))
        if names:
            raise UpdateNotLive(
                f"engine settings differ ({', '.join(names)}); that needs a restart"
            )
