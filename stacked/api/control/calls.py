"""Requests and responses of the control plane's routes: bodies, `if-match`, etags, retry tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator
from starlette.types import Receive, Scope

from stacked.api.bodies import read_body
from stacked.api.control.base import Json, ResponseModel
from stacked.api.retry_tokens import HEADER as RETRY_TOKEN
from stacked.api.retry_tokens import RetryTokens
from stacked.callers import caller_of
from stacked.config import is_loopback
from stacked.errors import NotAllowed, RecordStale
from stacked.registry import Registry
from stacked.registry.records import Affected, Page, Record, WorkRequest
from stacked.service import Service
from stacked.serving.bodies import parse_object, replay
from stacked.serving.targets import PREFIX

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=ResponseModel)


class Route(APIRoute):
    """A route that parses any body as JSON, whatever its content type, and honours retry tokens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        takes_body = self.body_field is not None

        async def parsed(request: Request) -> Response:
            return await inner(await _with_object(request) if takes_body else request)

        async def handle(request: Request) -> Response:
            tokens: RetryTokens = request.app.state.retry_tokens
            return await tokens.once(request, parsed)

        return handle


class _ObjectRequest(Request):
    """A request whose body was read and parsed."""

    def __init__(self, scope: Scope, receive: Receive, tree: Json) -> None:
        super().__init__(scope, receive)
        self._tree = tree

    async def json(self) -> Any:
        return self._tree


async def _with_object(request: Request) -> Request:
    """The request with its body parsed. Raises BodyInvalid, BodyTooLarge.

    Clients of OCI name other content types, or none; FastAPI parses JSON alone.
    """
    limit = request.app.state.service.config.server.max_body_bytes
    body = await read_body(request.receive, limit, request.headers.get("content-length"))
    tree = parse_object(body)
    headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
    scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
    return _ObjectRequest(scope, replay(body, request.receive), tree)


class Call:
    """A request to a resource: the service, who signed it, and the headers of its response."""

    def __init__(self, request: Request, response: Response) -> None:
        self.service: Service = request.app.state.service
        self.caller = caller_of(request.scope).user
        self.headers = response.headers

    @property
    def registry(self) -> Registry:
        return self.service.registry

    def shown(self, record: Record | WorkRequest, body: M, headers: Mapping[str, str] = {}) -> M:
        """The body, with the record's etag in the headers of the response."""
        self.headers.update({"etag": etag(record), **headers})
        return body

    def paged(self, page: Page[Any], of: Callable[[Any], M]) -> list[M]:
        """A bare array, with the header `opc-next-page` if there is a next page."""
        if page.next:
            self.headers["opc-next-page"] = page.next
        return [of(item) for item in page.items]


class Change(Call):
    """A request to change what is there, with its `if-match`."""

    def __init__(self, request: Request, response: Response, if_match: str | None) -> None:
        super().__init__(request, response)
        self._if_match = if_match

    def expected(self, record: R) -> R | None:
        """The record that the registry must find unchanged; None without an `if-match`.

        Raises RecordStale if it has changed already.
        """
        self.check_match(record)
        return None if self._if_match in (None, "*") else record

    def check_match(self, record: Record | WorkRequest) -> None:
        """Raises RecordStale if the record has changed."""
        given = self._if_match
        if given is not None and given.strip('"') not in (etag(record), "*"):
            raise RecordStale(f"{record.id} has changed since it was read; read it again")


# Dependencies are `async`, so that none of them takes a thread.


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _call(request: Request, response: Response) -> Call:
    return Call(request, response)


async def _change(
    request: Request,
    response: Response,
    if_match: Annotated[
        str | None,
        Header(alias="if-match", description="The `etag` that the record must still have"),
    ] = None,
) -> Change:
    return Change(request, response, if_match)


Served = Annotated[Service, Depends(_service)]
# A key or model id in a path; the gateway has left `/` and `%` in it encoded.
ModelName = Annotated[str, AfterValidator(unquote)]


async def _check_writes_allowed(service: Served) -> None:
    """Raises NotAllowed if administrative verbs are off."""
    server = service.config.server
    allowed = server.runtime_updates
    if allowed is None:
        allowed = is_loopback(server.host) or server.auth.required
    if not allowed:
        raise NotAllowed(
            "loading and removing adapters over HTTP is off here; "
            "set server.runtime_updates: true to allow it"
        )


CHANGE = [Depends(_check_writes_allowed)]


async def _retry_token(
    token: Annotated[
        str | None,
        Header(
            alias=RETRY_TOKEN,
            pattern="^[!-~]{1,64}$",
            description="The same token again is answered as it was the first time, for a day",
        ),
    ] = None,
) -> None:
    """Declares what `Route` reads."""


Allowed = Annotated[None, *CHANGE]
Once = Annotated[None, Depends(_retry_token)]


async def _create(call: Read, allowed: Allowed, once: Once) -> Call:
    return call


async def _update(call: Annotated[Change, Depends(_change)], allowed: Allowed) -> Change:
    return call


async def _action(call: Update, once: Once) -> Change:
    return call


Read = Annotated[Call, Depends(_call)]
Create = Annotated[Call, Depends(_create)]
"""A POST that creates something: writes must be allowed, and a retry token is honoured."""
Update = Annotated[Change, Depends(_update)]
"""PUT and DELETE: writes must be allowed."""
Action = Annotated[Change, Depends(_action)]
"""A POST to an existing record: writes must be allowed, and a retry token is honoured."""


def resource_router(path: str, tag: str) -> APIRouter:
    return APIRouter(
        prefix=PREFIX + path,
        tags=[tag],
        route_class=Route,
        generate_unique_id_function=lambda route: route.name,
    )


HEADERS: Mapping[str, Json] = {
    "etag": {"description": "Another one after every change", "required": True},
    "opc-work-request-id": {"description": "Follow this work request", "required": True},
    "opc-next-page": {"description": "The page that follows; only where there is one"},
    "retry-after": {"description": "Seconds; only while the work is not over"},
    "content-range": {"description": "Which bytes of how many", "required": True},
    "content-disposition": {"description": "The name of the file", "required": True},
    "content-md5": {"description": "Of the whole artifact, in base64", "required": True},
    "last-modified": {"description": "When the artifact came", "required": True},
    "accept-ranges": {"description": "`bytes`", "required": True},
}


def success(*headers: str, status: int = 200, also: Iterable[int] = ()) -> dict[int | str, Json]:
    """For a route's `responses`: headers of its response, and its additional errors."""
    named = {name: {**HEADERS[name], "schema": {"type": "string"}} for name in headers}
    return {status: {"headers": named}, **{error: {} for error in also}}


def bare(status: int, *headers: str) -> dict[str, Any]:
    """For a route whose response has no body: its status and headers."""
    responses = success(*headers, status=status)
    return {"status_code": status, "response_class": Response, "responses": responses}


def etag(record: Record | WorkRequest) -> str:
    """A string that changes whenever the record does."""
    if isinstance(record, Record):
        seen = (record.id, record.time_updated.isoformat())
    else:
        seen = (record.id, f"{record.status.value} {record.percent}")
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:32]


def done(record: Record, headers: Mapping[str, str] = {}, status: int = 204) -> Response:
    """A response without a body."""
    return Response(status_code=status, headers={"etag": etag(record), **headers})


def finished(
    registry: Registry, operation: str, action: str, what: tuple[str, str], record: Record
) -> dict[str, str]:
    """Write a work request that has succeeded, and return the header that names it.

    `what` is the kind of thing, as OCI's clients look for it, and its collection.
    """
    entity, collection = what
    affected = Affected(action, entity, record.id, f"{PREFIX}/{collection}/{record.id}")
    work = registry.work_requests.open(operation, [affected], compartment_id=record.compartment_id)
    registry.work_requests.advance(work.id, 0.0)
    registry.work_requests.succeed(work.id, f"{record.display_name or record.id}: {action.lower()}")
    return {"opc-work-request-id": work.id}
