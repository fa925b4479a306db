"""What every control-plane route shares: reading a body, answering with an etag, OCI's errors.

It must not know any one resource.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from stacked import errors
from stacked.api import wire
from stacked.api.bodies import parse_object, read_body
from stacked.api.errors import plain_body, status_of
from stacked.api.retry_tokens import RetryTokens
from stacked.errors import RecordAbsent, RecordStale, StackedError
from stacked.registry.records import Record, WorkRequest
from stacked.service import Service

PREFIX = "/20190101"

B = TypeVar("B", bound=BaseModel)
K = TypeVar("K", bound=Record)

# What OCI calls these cases; every other error keeps its own code.
OCI_CODES: Mapping[type[StackedError], str] = {
    errors.RecordAbsent: "NotAuthorizedOrNotFound",
    errors.RecordConflict: "Conflict",
    errors.IllegalMove: "Conflict",
    errors.RecordStale: "NoEtagMatch",
    errors.PageInvalid: "InvalidParameter",
    errors.ParameterInvalid: "InvalidParameter",
    errors.GroupInvalid: "InvalidParameter",
    errors.ConfigInvalid: "InvalidParameter",
    errors.EngineOptionInvalid: "InvalidParameter",
    errors.BodyInvalid: "CannotParseRequest",
    errors.BodyTooLarge: "PayloadTooLarge",
    errors.NotReady: "ServiceUnavailable",
    errors.NotOffered: "MethodNotImplemented",
}


# Its collections, which scripts also ask for without the version: OCI's own pages leave it out.
_COLLECTIONS = re.compile(
    r"/(model(s|Groups|GroupVersionHistory|VersionSets|Deployments|DeploymentShapes)"
    r"|workRequests|containers|projects|computeTargets)(/.*)?"
)
# The verbs of a container for one model, which are not the catalogue's. Keys may have slashes, so
# what stands below a model of the catalogue is told by its name.
_BELOW_A_MODEL = r"[^/]+/(actions|artifact|customMetadata|definedMetadata|provenance)(/|$)"
_OF_ONE_MODEL = re.compile(
    rf"(POST|DELETE) /models/(?!{_BELOW_A_MODEL}).+"
    r"|[A-Z]+ /models/.+/(health|predict|predictWithResponseStream)"
)


def versioned(method: str, path: str) -> str:
    """A path of the control plane with its version, also where it came without; else as it is."""
    if _COLLECTIONS.fullmatch(path) is None or _OF_ONE_MODEL.fullmatch(f"{method} {path}"):
        return path
    return PREFIX + path


def is_control(path: str) -> bool:
    """Whether a path is the control plane's, where errors have OCI's codes."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def oci_code(error: StackedError, path: str) -> str:
    """The code of an error at a path."""
    return OCI_CODES.get(type(error), error.code) if is_control(path) else error.code


class Route(APIRoute):
    """A route whose errors have OCI's codes, and that answers in its shape alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            tokens: RetryTokens = request.app.state.retry_tokens
            try:
                return await tokens.once(request, inner)
            except StackedError as error:
                code = oci_code(error, request.url.path)
                return JSONResponse(plain_body(code, str(error)), status_of(error))
            except ValidationError as error:
                return JSONResponse(invalid(error), 400)

        return handle


async def tree_of(request: Request, service: Service) -> dict[str, Any]:
    """The body as an object, whatever its content type says."""
    limit = service.config.server.max_body_bytes
    declared = request.headers.get("content-length")
    return parse_object(await read_body(request.receive, limit, declared))


async def read(request: Request, service: Service, kind: type[B]) -> B:
    return kind.model_validate(await tree_of(request, service))


def check_match(request: Request, record: Record) -> None:
    """Keep `if-match`. Raises RecordStale where the record is another one by now."""
    given = request.headers.get("if-match")
    if given is not None and given.strip('"') not in (wire.etag(record), "*"):
        raise RecordStale(f"{record.id} has changed since it was read; read it again")


def expected(request: Request, record: K) -> K | None:
    """What the registry must find unchanged: the record, where the request has an `if-match`.

    Raises RecordStale where it is another one already.
    """
    check_match(request, record)
    return None if request.headers.get("if-match") in (None, "*") else record


def kept(record: K) -> K:
    """The record, unless it is deleted: then nothing more can be done to it."""
    state: Any = getattr(record, "state", None)
    if state is not None and state.value == "DELETED":
        raise RecordAbsent(f"{record.id} is deleted")
    return record


def done(record: Record, headers: Mapping[str, str] | None = None, status: int = 204) -> Response:
    """An answer without a body."""
    return Response(status_code=status, headers={"etag": wire.etag(record), **(headers or {})})


def shown(
    body: wire.Json, record: Record | WorkRequest, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(body, headers={"etag": wire.etag(record), **(headers or {})})


def invalid(error: ValidationError) -> dict[str, Any]:
    """The first fault; what is missing is told before what is wrong."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "missing")
    first = faults[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return plain_body("MissingParameter", f"{place} is missing")
    said = first["msg"].removeprefix("Value error, ")
    return plain_body("InvalidParameter", f"{place}: {said}")


def uri(collection: str, record: Record) -> str:
    return f"{PREFIX}/{collection}/{record.id}"


def url_of(request: Request) -> str:
    return str(request.base_url).rstrip("/")
