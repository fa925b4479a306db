"""What the resources of the control plane share. A resource is one file: models, then routes.

How it is written; `histories.py` is the pattern:

1. Requests are `RequestModel`s (`Created`, `Updated`, `ListQuery`): camelCase, unknown fields are
   ignored. Responses are `ResponseModel`s (`Resource`), read from a record by `of(record)`; a field
   that the record calls otherwise has a `validation_alias`, one that is left out an `exclude_if`.
2. `router = resource_router(path, tag)`. A route's function is named as the SDK's operation, which
   is its operation id, and is a plain `def` (it runs in a thread) unless it awaits the service.
3. The signature is the document: body, `Annotated[XQuery, Query()]`, `if_match: IfMatch = None`,
   `service: Served`, `caller: Caller`, `response: Response`; the return type is what is answered.
4. A write has `dependencies=CHANGE`, a POST `dependencies=POST`. `responses=success("etag")` names
   the headers of an answer, and statuses that do not follow from the signature (`openapi.py`).
5. `shown(response, record, body)` sets the etag; `paged(response, page, Kind)` answers a list;
   `done(record)` answers without a body. Errors are raised; `api/errors.py` has
   their statuses and codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic import (
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel, to_snake
from starlette.types import Receive, Scope

from stacked.api.bodies import read_body
from stacked.api.gate import principal_of
from stacked.api.retry_tokens import HEADER as RETRY_TOKEN
from stacked.api.retry_tokens import RetryTokens
from stacked.config import is_loopback
from stacked.errors import NotAllowed, RecordStale
from stacked.registry import Registry
from stacked.registry.paging import MAX_LIMIT
from stacked.registry.records import Affected, Page, Record, WorkRequest
from stacked.registry.records import Query as Reading
from stacked.service import Service
from stacked.serving.bodies import parse_object, replay
from stacked.serving.targets import PREFIX

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound="ResponseModel")

# -- models -------------------------------------------------------------------------------

Json = dict[str, Any]

# Clients leave out what is null; a null that is sent means the same.
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Name = Annotated[Text, Field(max_length=255)]
Description = Annotated[Text, Field(max_length=400)]
EmptyAsNull = Annotated[str | None, BeforeValidator(lambda value: value or None)]


def moment(time: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[
    datetime,
    PlainSerializer(moment, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class RequestModel(BaseModel):
    """Unknown fields are ignored: the SDK sends what its models have, and dicts as they are."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, protected_namespaces=()
    )


class Created(RequestModel):
    """What is created: its name, where it belongs, its tags."""

    display_name: Name = ""
    compartment_id: Text = ""
    project_id: Text = ""
    freeform_tags: Json | None = None
    defined_tags: Json | None = None

    def tags(self) -> Json:
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        return {name: value for name, value in given.items() if value}

    def head(self, created_by: str, named: str = "") -> Json:
        """The fields of a record that every resource has; `named` begins a name that is made."""
        made = f"{named}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if named else ""
        return {
            "display_name": self.display_name or made,
            "compartment_id": self.compartment_id,
            "project_id": self.project_id,
            "created_by": created_by,
            "tags": self.tags(),
        }


class Updated(RequestModel):
    """What is updated: a field that is left out stays."""

    display_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    description: Annotated[str, Field(max_length=400)] | None = None
    freeform_tags: Json | None = None
    defined_tags: Json | None = None

    def changes(self, record: Record) -> Json:
        """The columns of the record that change."""
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        new = {name: value for name, value in given.items() if value is not None}
        columns = {"display_name": self.display_name, "description": self.description}
        found: Json = {name: value for name, value in columns.items() if value is not None}
        return {**found, "tags": {**record.tags, **new}} if new else found


class ChangeCompartment(RequestModel):
    """`POST …/actions/changeCompartment`."""

    compartment_id: Annotated[str, Field(min_length=1)]


class Paged(RequestModel):
    """The query of every list: which part of it."""

    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 100
    page: str | None = Field(None, description="The `opc-next-page` of the page before, verbatim")

    def reading(self) -> Reading:
        return Reading(limit=self.limit, page=self.page)


# How the registry calls what sorts a list.
_COLUMNS = {"lifecycleState": "state", "operationType": "operation", "name": "display_name"}


COMPARTMENT = Field(None, description="Accepted and ignored: a server is one compartment")


class ListQuery(Paged):
    """The query of a list of records. What it filters by is called as the registry calls it."""

    compartment_id: str | None = COMPARTMENT
    sort_by: str | None = None
    sort_order: Literal["ASC", "DESC"] | None = Field(
        None, description="Times run down by default, the rest up"
    )

    def reading(self) -> Reading:
        sort = self.sort_by and _COLUMNS.get(self.sort_by, to_snake(self.sort_by))
        falls = None if self.sort_order is None else self.sort_order == "DESC"
        return Reading(sort=sort, descending=falls, limit=self.limit, page=self.page)

    def filters(self) -> Json:
        return self.model_dump(exclude=set(ListQuery.model_fields), exclude_none=True)


class HeadQuery(ListQuery):
    """The query of most lists."""

    sort_by: Literal["timeCreated", "displayName", "lifecycleState"] | None = None
    id: str | None = None
    display_name: str | None = None
    created_by: str | None = None
    project_id: str | None = None


class ResponseModel(BaseModel):
    """Read from a record; nothing is in a response that is not declared."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        from_attributes=True,
        frozen=True,
        json_schema_serialization_defaults_required=True,
        protected_namespaces=(),
        validate_by_alias=True,
        validate_by_name=True,
    )

    @classmethod
    def of(cls, record: Any, **more: Any) -> Self:
        """Read from the attributes of a record, and `more` that it does not have."""
        return cls.model_validate(_With(record, more) if more else record)


class _With:
    """A record with more attributes than its own."""

    def __init__(self, record: Any, more: Mapping[str, Any]) -> None:
        self._record = record
        self.__dict__.update(more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)


class Tagged(ResponseModel):
    freeform_tags: Json = Field(
        validation_alias=AliasPath("tags", "freeform"), default_factory=dict
    )
    defined_tags: Json = Field(validation_alias=AliasPath("tags", "defined"), default_factory=dict)


class Resource(Tagged):
    """What every resource has."""

    id: str
    compartment_id: str
    project_id: str
    display_name: str
    created_by: str
    time_created: Moment


class StatefulResource(Resource):
    """What has a reason for its state, and says when it changed."""

    lifecycle_details: str = Field(validation_alias="reason")
    time_updated: Moment
    system_tags: Json = Field(default_factory=dict)


# -- routes -------------------------------------------------------------------------------


class Route(APIRoute):
    """A route whose body is JSON whatever its content type says, and that keeps retry tokens."""

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
    kept = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
    scope = {**request.scope, "headers": [*kept, (b"content-type", b"application/json")]}
    return _ObjectRequest(scope, replay(body, request.receive), tree)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _caller(request: Request) -> str:
    return principal_of(request.scope)


Served = Annotated[Service, Depends(_service)]
Caller = Annotated[str, Depends(_caller)]
"""Who has signed the request."""
IfMatch = Annotated[
    str | None,
    Header(alias="if-match", description="The `etag` that the record must still have"),
]


async def check_writes_allowed(service: Served) -> None:
    """Raises NotAllowed where administrative verbs are off."""
    server = service.config.server
    allowed = server.runtime_updates
    if allowed is None:
        allowed = is_loopback(server.host) or server.auth.oci is not None
    if not allowed:
        raise NotAllowed(
            "loading and removing adapters over HTTP is off here; "
            "set server.runtime_updates: true to allow it"
        )


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


CHANGE = [Depends(check_writes_allowed)]
POST = [*CHANGE, Depends(_retry_token)]


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
    """For a route's `responses`: the headers of its answer, and errors of its own."""
    named = {name: {**HEADERS[name], "schema": {"type": "string"}} for name in headers}
    return {status: {"headers": named}, **{error: {} for error in also}}


def bare(status: int, *headers: str) -> dict[str, Any]:
    """For a route whose answer has no body: its status, and the headers of the answer."""
    responses = success(*headers, status=status)
    return {"status_code": status, "response_class": Response, "responses": responses}


# -- answers ------------------------------------------------------------------------------


def etag(record: Record | WorkRequest) -> str:
    """Another string after every change of the record."""
    if isinstance(record, Record):
        seen = (record.id, record.time_updated.isoformat())
    else:
        seen = (record.id, f"{record.status.value} {record.percent}")
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:32]


def expected(if_match: str | None, record: R) -> R | None:
    """What the registry must find unchanged: the record, where the request has an `if-match`.

    Raises RecordStale where it is another one already.
    """
    check_match(if_match, record)
    return None if if_match in (None, "*") else record


def check_match(if_match: str | None, record: Record | WorkRequest) -> None:
    """Raises RecordStale where the record is another one by now."""
    if if_match is not None and if_match.strip('"') not in (etag(record), "*"):
        raise RecordStale(f"{record.id} has changed since it was read; read it again")


def shown(
    response: Response, record: Record | WorkRequest, body: M, headers: Mapping[str, str] = {}
) -> M:
    """The body, with the record's etag in the headers of the response."""
    response.headers.update({"etag": etag(record), **headers})
    return body


def done(record: Record, headers: Mapping[str, str] = {}, status: int = 204) -> Response:
    """An answer without a body."""
    return Response(status_code=status, headers={"etag": etag(record), **headers})


def paged(response: Response, page: Page[Any], of: Callable[[Any], M]) -> list[M]:
    """A bare array; the header of the next page is there only when there is one."""
    if page.next:
        response.headers["opc-next-page"] = page.next
    return [of(item) for item in page.items]


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
