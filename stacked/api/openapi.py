"""`/openapi.json`: FastAPI's document of our routes, joined with that of the engine's, and `/docs`.

What a route declares is not repeated here. What all operations share is added: the
request's id, and the errors that follow from an operation's parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from stacked.api.control.base import Json
from stacked.errors import EngineDead, NotAuthorizedOrNotFound, NotReady
from stacked.service import Service
from stacked.serving.targets import HEALTH_PATHS, is_open, is_plain, is_tensors, model_target

_SCHEMAS = "#/components/schemas/"
_TEXT: Json = {"type": "string"}

ERRORS: Mapping[int, str] = {
    400: "The request is wrong; the message names the place",
    401: "No credential that is valid here (where `server.auth` requires one)",
    403: "Not for this caller, or switched off on this server",
    404: "There is no such thing here",
    408: "The body did not arrive in time",
    409: "Conflicts with the resource's current state",
    411: "An upload that does not say how long it is",
    412: "`if-match` names another version than the one that is there",
    413: "The body is larger than this server takes",
    415: "A content coding or type that is not taken",
    416: "The artifact does not have these bytes",
    429: "Too many requests before this one; `retry-after` says when to try again",
    500: "A fault of the server; its log tells more under the answer's `opc-request-id`",
    501: "It needs what is not here, such as OCI's object storage",
    502: "Another machine, which the source names, did not answer as it should",
    503: "Nothing is served yet, or no more",
    504: "The request was not answered within its time",
}


def _closed(**properties: Json) -> Json:
    closed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed}


_ERROR = _closed(code=_TEXT, message=_TEXT)
_OPENAI_ERROR = _closed(
    error=_closed(
        message=_TEXT,
        type=_TEXT,
        param={"type": ["string", "null"]},
        code={"type": ["string", "integer", "null"]},
    )
)


_ERRORS = {
    "": _ERROR,
    "OpenAI": _OPENAI_ERROR,
    "OpenInference": _closed(error=_TEXT, code=_TEXT, message=_TEXT),
}
"""By the kind of a path; see `_complete`."""


def _in_header(name: str, description: str) -> Json:
    return {"type": "apiKey", "in": "header", "name": name, "description": description}


_TOKENS: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, as OpenAI's clients send it",
    },
    "apiKey": _in_header("api-key", "A token, as Azure's"),
    "xApiKey": _in_header("x-api-key", "A token, as Anthropic's"),
}
_SIGNED: Json = {
    "ociSignature": _in_header("authorization", "Signed as OCI's SDKs do; see docs/security.md")
}


def openapi_routes(app: FastAPI, service: Service) -> None:
    """Add the document and the pages that show it."""
    own: list[Json] = []  # slow to make, and does not change

    @app.get("/openapi.json", tags=["Stacked"], operation_id="openapi")
    def openapi() -> dict[str, Any]:
        """This document."""
        own[:] = own or [of_server(app)]
        try:
            engine = service.vllm.app.openapi()
        except (NotReady, EngineDead, NotAuthorizedOrNotFound):
            return own[0]
        return with_engine(own[0], engine)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/openapi.json", title="Stacked")

    @app.get("/redoc", include_in_schema=False)
    def redoc() -> HTMLResponse:
        return get_redoc_html(openapi_url="/openapi.json", title="Stacked")


def of_server(app: FastAPI) -> Json:
    """The document of what this server does itself, with or without an engine."""
    own = get_openapi(
        title="Stacked",
        version=version("stacked"),
        description="One base LLM and many LoRA fine-tunes of it, each by its inference key; and "
        "the control plane that OCI's SDKs speak.",
        routes=app.routes,
    )
    for path, method, operation in _inference():
        own["paths"].setdefault(path, {})[method] = operation
    for path, item in own["paths"].items():
        for method, operation in item.items():
            _complete(path, method, operation)
    components = own["components"]
    for name in ("ValidationError", "HTTPValidationError"):  # of FastAPI's 422, which is not used
        components["schemas"].pop(name, None)
    components["schemas"] |= {f"{kind}Error": error for kind, error in _ERRORS.items()}
    components["responses"] = {}
    for kind in _ERRORS:
        components["responses"] |= _responses(kind)
    components["headers"] = {
        "opc-request-id": {
            "description": "The request's own, or a new one",
            "required": True,
            "schema": _TEXT,
        }
    }
    components["securitySchemes"] = _TOKENS | _SIGNED
    auth = app.state.service.config.server.auth
    own["security"] = [{name: []} for name in _TOKENS if auth.bearer]
    for path in HEALTH_PATHS & own["paths"].keys():
        for operation in own["paths"][path].values():
            operation["security"] = []
    own["security"] += [{name: []} for name in _SIGNED if auth.oci is not None]
    return own


def _complete(path: str, method: str, operation: Json) -> None:
    given = [*operation.get("parameters", ()), REQUEST_ID]
    operation["parameters"] = [{**each, "schema": _not_null(each["schema"])} for each in given]
    answers = operation["responses"]
    answers.pop("422", None)
    for answer in answers.values():
        id_ = {"$ref": "#/components/headers/opc-request-id"}
        answer["headers"] = {**answer.get("headers", {}), "opc-request-id": id_}
    kind = "" if is_plain(path) and not path.endswith(_BELOW_PREDICT) else "OpenAI"
    kind = "OpenInference" if is_tensors(path) else kind
    own = {int(status) for status in answers if int(status) >= 400}
    for status in sorted(own | set(_errors(method, operation))):
        answers[str(status)] = {"$ref": f"#/components/responses/{kind}{status}"}


def _errors(method: str, operation: Json) -> Iterator[int]:
    """The errors of an operation, by its parameters."""
    yield from (401, 403, 404, 500, 503)
    given = {(each["in"], each["name"]) for each in operation["parameters"]}
    if method not in ("get", "head"):
        yield from (400, 408, 409, 413, 429)
        if operation["tags"] == [INFERENCE]:
            yield from (415, 504)
    if any(place == "query" for place, _ in given):
        yield 400
    if ("header", "if-match") in given:
        yield 412


def _not_null(schema: Json) -> Json:
    """A query parameter can be absent, but not null."""
    return next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)


def _responses(kind: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{kind}Error"}}}
    id_ = {"opc-request-id": {"$ref": "#/components/headers/opc-request-id"}}
    return {
        f"{kind}{status}": {"description": text, "headers": id_, "content": content}
        for status, text in ERRORS.items()
    }


# -- inference, which the gateway passes to vLLM's app -------------------------------------

INFERENCE = "Inference"
# Paths of vLLM's below a deployment, whose errors are OpenAI's as they are without it.
_BELOW_PREDICT = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize")


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "schema": _TEXT, "description": description}


REQUEST_ID = _header("opc-request-id", "Echoed in the answer and in every log line of the request")
_ROUTING = (
    _header("model-key", "The inference key of the model; or in the body's `model`"),
    _header("model-ocid", "The id of the model, instead of a key"),
    _header("experiment-unit", "Who gets an arm, where the key is an experiment's on this header"),
)
_STREAMING = _header("enable-streaming", "`true` asks for a stream")
_ROUTE = _header("route", "The endpoint that `/predict` means, such as `/v1/chat/completions`")
_BODY: Json = {
    "type": "object",
    "description": "What vLLM's completions (`prompt`) or chat completions (`messages`) take",
    "properties": {
        "model": {**_TEXT, "description": "Inference key or model id; left out: the base"},
        "prompt": {},
        "messages": {"type": "array", "items": {"type": "object"}},
        "max_tokens": {"type": "integer"},
        "temperature": {"type": "number"},
        "stream": {"type": "boolean"},
    },
}
_TENSORS: Json = {
    "type": "object",
    "description": "`inputs` of `name`, `datatype`, `shape` and `data`, as the protocol has them",
    "properties": {"id": _TEXT, "inputs": {"type": "array", "items": {"type": "object"}}},
    "required": ["inputs"],
}
_EVENT: Json = {
    "type": "object",
    "description": "One event; the last has `[DONE]`",
    "properties": {"data": _TEXT},
    "required": ["data"],
}
_OBJECT: Json = {"application/json": {"schema": {"type": "object"}}}
_ANSWERS: Json = {**_OBJECT, "text/event-stream": {"schema": _EVENT}}


def _inference() -> Iterator[tuple[str, str, Json]]:
    """With a running engine, vLLM's own document of its paths replaces this."""
    for prefix in ("", "/models/{model}", "/model/{model}", "/{deploymentId}"):
        kind = prefix.strip("/").partition("/")[0].strip("{}")
        for verb in ("predict", "predictWithResponseStream"):
            id = f"{verb}_{kind}" if kind else verb
            yield _operation(f"{prefix}/{verb}", id, (*_ROUTING, _STREAMING, _ROUTE))
    for prefix, suffix in (
        ("", ""),
        ("/{deploymentId}/predict", "_below_a_deployment"),
        ("/{deploymentId}/predictWithResponseStream", "_streamed_by_a_deployment"),
    ):
        for name in ("completions", "chat/completions"):
            id = f"{name.replace('/', '_')}{suffix}"
            routing = (*_ROUTING, _STREAMING) if prefix else _ROUTING
            yield _operation(f"{prefix}/v1/{name}", id, routing)
        yield _operation(f"{prefix}/v1/models", f"list_served_models{suffix}", method="get")
    plain: Json = {"type": "object"}
    infer = "/v2/models/{model}/infer"
    yield _operation(infer, "infer", (), _TENSORS, _OBJECT, said="As the Open Inference Protocol's")
    path, id = "/{deploymentId}/predict/tokenize", "tokenize_below_a_deployment"
    yield _operation(path, id, _ROUTING, plain, _OBJECT)


def _operation(
    path: str,
    id: str,
    headers: tuple[Json, ...] = (),
    body: Json = _BODY,
    content: Json = _ANSWERS,
    method: str = "post",
    said: str = "As vLLM's",
) -> tuple[str, str, Json]:
    names = re.findall(r"{(\w+)}", path)
    in_path = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    taken = {"required": True, "content": {"application/json": {"schema": body}}}
    operation: Json = {
        "operationId": id,
        "summary": id.replace("_", " ").capitalize(),
        "tags": [INFERENCE],
        "parameters": [*in_path, *headers],
        "responses": {
            "200": {
                "description": said,
                "content": content if method == "post" else _OBJECT,
            }
        },
    }
    return path, method, operation | ({"requestBody": taken} if method == "post" else {})


# -- the engine's own document ------------------------------------------------------------

# Responses of the engine's operations besides those it declares.
_BEFORE_A_MODEL = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504)


def with_engine(own: Json, engine: Json) -> Json:
    """The document with those operations of a running engine that can be called here.

    If both have an operation, the engine's is used.
    """
    theirs = json.loads(json.dumps(engine).replace(_SCHEMAS, f"{_SCHEMAS}engine."))
    paths = {path: dict(item) for path, item in own["paths"].items()}
    for path, item in theirs.get("paths", {}).items():
        for method, operation in item.items():
            if _reaches(method.upper(), path):
                paths.setdefault(path, {})[method] = _of_engine(method, operation)
    added = theirs.get("components", {}).get("schemas", {})
    named = {f"engine.{name}": schema for name, schema in added.items()}
    components = {**own["components"], "schemas": {**own["components"]["schemas"], **named}}
    return {**own, "paths": paths, "components": components}


def _reaches(method: str, path: str) -> bool:
    """Whether an operation of the engine's can be called here."""
    if path in ("/openapi.json", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        return False
    return model_target(method, path) is not None or is_open(method, path)


def _of_engine(method: str, operation: Json) -> Json:
    """An operation of the engine's as it is behind the gateway, which has errors of its own."""
    routing = _ROUTING if method == "post" else ()
    given = [*operation.get("parameters", ()), REQUEST_ID, *routing]
    named = {(each["in"], each["name"].lower()): each for each in given}
    answers = dict(operation.get("responses", {}))
    ours = [{"$ref": f"{_SCHEMAS}{name}"} for name in ("OpenAIError", "Error")]
    for status in _BEFORE_A_MODEL:
        before = answers.get(str(status), {}).get("content", {}).get("application/json", {})
        either = [before["schema"], *ours] if "schema" in before else ours
        content = {"application/json": {"schema": {"anyOf": either}}}
        answers[str(status)] = {"description": ERRORS[status], "content": content}
    parameters = list(named.values())
    return {**operation, "parameters": parameters, "responses": answers, "tags": [INFERENCE]}
