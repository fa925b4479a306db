"""The OpenAPI 3.1 document: operations put together with the schemas of what they take and answer.

Pure. It must not know any one operation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from stacked.api.openapi import shapes
from stacked.api.openapi.parts import ERRORS, HEADERS, REQUEST_ID, Answer, Json, Operation

_SCHEMAS = "#/components/schemas/"
# What the engine's operations answer with beside what it says itself.
_BEFORE_A_MODEL = (400, 401, 403, 404, 409, 413, 415, 500, 503)
Reaches = Callable[[str, str], bool]
_SIGNED: Json = {
    "type": "apiKey",
    "in": "header",
    "name": "authorization",
    "description": "Signed as OCI's SDKs do; see docs/security.md",
}


def document(operations: Iterable[Operation], *, signed: bool = False) -> Json:
    """The whole document. `signed`: whether requests must be."""
    listed = list(operations)
    schemas = _Schemas(listed)
    paths: dict[str, Json] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _one(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stacked",
            "version": version("stacked"),
            "description": "One base LLM and many LoRA fine-tunes of it, each by its inference "
            "key; and the control plane that OCI's SDKs speak.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.all,
            "responses": {**_errors("", shapes.Error), **_errors("OpenAI", shapes.OpenAIError)},
            "headers": {name: _header(name) for name in HEADERS},
            "securitySchemes": {"ociSignature": _SIGNED},
        },
        "security": [{"ociSignature": []}] if signed else [],
    }


def with_engine(own: Json, engine: Json, reaches: Reaches, routing: Sequence[Json]) -> Json:
    """The document with the operations of a running engine's own document.

    `reaches(method, path)` tells which of them can be called here. Where both have an operation it
    is the engine's; those that run a model take the parameters `routing` beside their own.
    """
    theirs = json.loads(json.dumps(engine).replace(_SCHEMAS, f"{_SCHEMAS}engine."))
    paths = {path: dict(item) for path, item in own["paths"].items()}
    for path, item in theirs.get("paths", {}).items():
        for method, operation in item.items():
            if reaches(method.upper(), path):
                given = routing if method == "post" else ()
                paths.setdefault(path, {})[method] = _of_engine(operation, given)
    added = theirs.get("components", {}).get("schemas", {})
    named = {f"engine.{name}": schema for name, schema in added.items()}
    components = {**own["components"], "schemas": {**own["components"]["schemas"], **named}}
    return {**own, "paths": paths, "components": components}


def _of_engine(operation: Json, routing: Sequence[Json]) -> Json:
    """An operation of the engine's as it is behind our gateway, which has errors of its own."""
    given = [*operation.get("parameters", ()), REQUEST_ID, *routing]
    named = {(each["in"], each["name"].lower()): each for each in given}
    answers = dict(operation.get("responses", {}))
    ours = [{"$ref": f"{_SCHEMAS}{name}"} for name in ("OpenAIError", "Error")]
    for status in _BEFORE_A_MODEL:
        before = answers.get(str(status), {}).get("content", {}).get("application/json", {})
        shapes_ = [before["schema"], *ours] if "schema" in before else ours
        content = {"application/json": {"schema": {"anyOf": shapes_}}}
        answers[str(status)] = {"description": ERRORS[status], "content": content}
    return {
        **operation,
        "parameters": list(named.values()),
        "responses": answers,
        "tags": ["Inference"],
    }


class _Plain(GenerateJsonSchema):
    """Without the titles that only repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Schemas:
    """The schemas of every type that the operations have, each once, under `all`."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        bodies = [each.body for each in operations if not _is_schema(each.body)]
        answers = [a.shape for each in operations for a in each.answers if not _is_schema(a.shape)]
        answers += [shapes.Error, shapes.OpenAIError]
        # Types that are equal are one; unions and lists are no hashable keys of their own.
        wanted: dict[str, Any] = {}
        for mode, types in (("validation", bodies), ("serialization", answers)):
            wanted |= {f"{mode} {kind!r}": (mode, kind) for kind in types}
        inputs = [(key, mode, TypeAdapter(kind)) for key, (mode, kind) in wanted.items()]
        found, rest = TypeAdapter.json_schemas(
            inputs, ref_template=f"{_SCHEMAS}{{model}}", schema_generator=_Plain
        )
        self._found = {key: schema for (key, _), schema in found.items()}
        self.all: Json = rest.get("$defs", {})

    def of(self, kind: Any, mode: str) -> Json:
        return kind if _is_schema(kind) else self._found[f"{mode} {kind!r}"]


def _is_schema(kind: Any) -> bool:
    """Whether it is a schema already, or nothing, and no type."""
    return kind is None or isinstance(kind, dict)


def _one(operation: Operation, schemas: _Schemas) -> Json:
    given = [*_in_path(operation), REQUEST_ID, *operation.parameters]
    named = {(each["in"], each["name"]): each for each in given}
    found: Json = {
        "operationId": operation.id,
        "summary": operation.told,
        "tags": [operation.tag],
        "parameters": list(named.values()),
        "responses": dict(_responses(operation, schemas)),
    }
    if operation.bytes_in:
        raw = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": raw}}
    elif operation.body is not None:
        content = {"application/json": {"schema": schemas.of(operation.body, "validation")}}
        found["requestBody"] = {"required": operation.body_needed, "content": content}
    return found | operation.more


def _in_path(operation: Operation) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _responses(operation: Operation, schemas: _Schemas) -> Iterator[tuple[str, Json]]:
    by_status: dict[int, list[Answer]] = {}
    for answer in operation.answers:
        by_status.setdefault(answer.status, []).append(answer)
    for status, answers in by_status.items():
        names = dict.fromkeys(name for answer in answers for name in answer.headers)
        found: Json = {"description": answers[0].told, "headers": _headers(names)}
        content = {
            answer.media: {"schema": schemas.of(answer.shape, "serialization")}
            for answer in answers
            if answer.shape is not None
        }
        yield str(status), found | ({"content": content} if content else {})
    kind = "OpenAI" if operation.openai_errors else ""
    for status in operation.errors:
        yield str(status), {"$ref": f"#/components/responses/{kind}{status}"}


def _errors(kind: str, shape: Any) -> Mapping[str, Json]:
    schema = {"$ref": f"{_SCHEMAS}{shape.__name__}"}
    return {
        f"{kind}{status}": {
            "description": told,
            "headers": _headers(()),
            "content": {"application/json": {"schema": schema}},
        }
        for status, told in ERRORS.items()
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("opc-request-id", *names)}


def _header(name: str) -> Json:
    return {**HEADERS[name], "schema": {"type": "string"}}
