"""The control plane under `/20190101`: models, groups, deployments, LIVE updates, their work.

`base.py` says how a resource is written. No module here knows how a group is made live.
"""

from __future__ import annotations

from fastapi import FastAPI

from stacked.api.control import (
    adapters,
    artifacts,
    deployments,
    fleet,
    groups,
    histories,
    models,
    shadow,
    status,
    surroundings,
    version_sets,
    work_requests,
)
from stacked.api.retry_tokens import PATIENCE, RetryTokens
from stacked.service import Service

_RESOURCES = (
    models,
    artifacts,
    groups,
    histories,
    deployments,
    work_requests,
    version_sets,
    surroundings,
    status,
    shadow,
    fleet,
    adapters,
)


def control_routes(app: FastAPI, service: Service) -> None:
    """Add the control plane to the app."""
    patience = PATIENCE if service.config.fleet is not None else 0.0
    app.state.retry_tokens = RetryTokens(
        lambda: service.registry, service.config.server.max_body_bytes, patience
    )
    for resource in _RESOURCES:
        # Not `include_router`, which analyses every signature anew: most of the time of a start.
        app.router.routes.extend(resource.router.routes)
