"""The parts that operations of the OpenAPI document are made of: parameters, headers, errors.

It must not know any one operation.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from stacked.api.lists import Names
from stacked.registry.paging import MAX_LIMIT

Json = dict[str, Any]

ERRORS: Mapping[int, str] = {
    400: "The request is wrong; the message names the place",
    401: "Not signed, or not by a key that is known here (where `server.auth.oci` is set)",
    403: "Not for this caller, or switched off on this server",
    404: "There is no such thing here",
    405: "The path is there, and not for this verb",
    409: "Not in the state that things are in",
    411: "An upload that does not say how long it is",
    412: "`if-match` names another version than the one that is there",
    413: "The body is larger than this server takes",
    415: "A content coding or type that is not taken",
    416: "The artifact does not have these bytes",
    500: "A fault of the server; its log tells more under the answer's `opc-request-id`",
    501: "It needs what is not here, such as OCI's object storage",
    502: "Another machine, which the source names, did not answer as it should",
    503: "Nothing is served yet, or no more",
}

_TEXT: Json = {"type": "string"}


def query(name: str, schema: Json, told: str = "") -> Json:
    found = {"name": name, "in": "query", "schema": schema}
    return {**found, "description": told} if told else found


def header(name: str, told: str, schema: Json = _TEXT) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": told}


REQUEST_ID = header("opc-request-id", "Echoed in the answer and in every log line of the request")
IF_MATCH = header("if-match", "The `etag` that the record must still have")
RETRY_TOKEN = header(
    "opc-retry-token",
    "The same token again is answered as it was the first time, for a day",
    {"type": "string", "pattern": "^[!-~]{1,64}$"},
)
RANGE = header("range", "`bytes=first-last`; any other form is all of it")
FILE_NAME = header("content-disposition", 'Such as `attachment; filename="adapter.zip"`')
COMPARTMENT = query("compartmentId", _TEXT, "Taken and not looked at: a server is one compartment")
PAGING = (
    query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100}),
    query("page", _TEXT, "The `opc-next-page` of the page before, verbatim"),
)
ORDER = query("sortOrder", {"enum": ["ASC", "DESC"]}, "Times run down by default, the rest up")

HEADERS: Mapping[str, Json] = {
    "opc-request-id": {"description": "The request's own, or a new one", "required": True},
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
DOWNLOAD_HEADERS = ("etag", "content-disposition", "content-md5", "last-modified", "accept-ranges")


@dataclass(frozen=True, slots=True)
class Answer:
    """One success. `shape` is a type, or None: no body. `media`: what it is where it is no JSON."""

    status: int
    told: str
    shape: Any = None
    headers: Sequence[str] = ()
    media: str = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: what it takes, and all that it may answer with.

    `body` is a pydantic model (or a union of them), a JSON schema, or None. `bytes_in`: the body is
    raw bytes.
    """

    id: str
    method: str
    path: str
    told: str
    tag: str
    answers: Sequence[Answer]
    errors: Sequence[int]
    parameters: Sequence[Json] = ()
    body: Any = None
    body_needed: bool = True
    bytes_in: bool = False
    openai_errors: bool = False
    more: Json = field(default_factory=dict)


def filters(names: Names, sorts: Mapping[str, str]) -> tuple[Json, ...]:
    """The query of a list: what `lists.listed` reads with the same two."""
    found = [COMPARTMENT, *PAGING, ORDER] if sorts else list(PAGING)
    if sorts:
        found.append(query("sortBy", {"enum": list(sorts)}))
    for name, meaning in names.items():
        found.append(query(name, _TEXT if isinstance(meaning, str) else _choices(meaning)))
    return tuple(found)


def declared(kind: type[BaseModel]) -> tuple[Json, ...]:
    """The query of a route that declares it as a model."""
    schema = kind.model_json_schema()
    return tuple(
        query(name, next((one for one in each.get("anyOf", ()) if "type" in one), each))
        for name, each in schema["properties"].items()
    )


def _choices(kind: type[enum.Enum]) -> Json:
    return {"enum": [member.value for member in kind]}
