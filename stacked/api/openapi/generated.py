"""FastAPI's own document of the routes that declare what they take and answer.

What every operation has in common is added here: the request's id, and the errors that follow from
what is declared. It must not know any one operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stacked.api.openapi.parts import REQUEST_ID

Json = dict[str, Any]


def generated(app: FastAPI) -> Json:
    """The document of the routes that have a tag."""
    routes = [route for route in app.routes if getattr(route, "tags", None)]
    tree = get_openapi(title="", version="", routes=routes)
    for item in tree["paths"].values():
        for method, operation in item.items():
            _complete(method, operation)
    schemas: Json = tree["components"]["schemas"]
    for name in ("ValidationError", "HTTPValidationError"):  # of FastAPI's 422, which is not ours
        schemas.pop(name, None)
    return tree


def _complete(method: str, operation: Json) -> None:
    given = [*operation.get("parameters", ()), REQUEST_ID]
    operation["parameters"] = [{**each, "schema": _not_null(each["schema"])} for each in given]
    answers = operation["responses"]
    answers.pop("422", None)
    for answer in answers.values():
        answer["headers"] = {**answer.get("headers", {}), "opc-request-id": _ref("headers")}
    own = {int(status) for status in answers if int(status) >= 400}
    for status in sorted(own | set(_errors(method, operation))):
        answers[str(status)] = {"$ref": f"#/components/responses/{status}"}


def _errors(method: str, operation: Json) -> Iterator[int]:
    """What may go wrong with an operation, by what it takes."""
    yield from (401, 403, 404, 500, 503)
    given = {(each["in"], each["name"]) for each in operation["parameters"]}
    if method not in ("get", "head"):
        yield from (400, 409, 413)
    if any(place == "query" for place, _ in given):
        yield 400
    if ("header", "if-match") in given:
        yield 412


def _not_null(schema: Json) -> Json:
    """A parameter that is left out is not there; it cannot be null."""
    return next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)


def _ref(kind: str, name: str = "opc-request-id") -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
