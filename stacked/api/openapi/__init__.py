"""`GET /openapi.json`: every operation of this server, and those of the engine that it runs.

It must not know what an operation does.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from stacked.api.openapi import control, serving
from stacked.api.openapi.document import document, with_engine
from stacked.api.openapi.generated import generated
from stacked.api.targets import is_open, model_target
from stacked.errors import EngineDead, NotReady
from stacked.service import Service

__all__ = ["of_server", "openapi_routes"]


def openapi_routes(app: FastAPI, service: Service) -> None:
    """Add the document to the app."""

    @app.get("/openapi.json")
    def openapi() -> JSONResponse:
        own = of_server(service, app)
        try:
            engine = service.openai_app.openapi()
        except (NotReady, EngineDead):
            return JSONResponse(own)
        return JSONResponse(with_engine(own, engine, _reaches, serving.ROUTING))


def of_server(service: Service, app: FastAPI) -> dict[str, Any]:
    """The document of what this server does itself, with or without an engine."""
    server = service.config.server
    ours = (*control.operations(), *serving.operations(server.health_path))
    listed = document(ours, signed=server.auth.oci is not None)
    declared = generated(app)
    listed["paths"] |= declared["paths"]
    listed["components"]["schemas"] |= declared["components"]["schemas"]
    return listed


def _reaches(method: str, path: str) -> bool:
    """Whether an operation of the engine's can be called here."""
    if path in ("/openapi.json", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        return False
    return model_target(method, path) is not None or is_open(method, path)
