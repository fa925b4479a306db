"""Operations outside the control plane: health, the container's verbs, and inference.

Inference is vLLM's; what its own document says of a path is put in its place where it runs. It must
not know how a document is put together.
"""

from __future__ import annotations

from collections.abc import Iterator

from stacked.api import asked
from stacked.api.asked.adapters import LoadBody, LoadLoraBody, UnloadLoraBody
from stacked.api.openapi import shapes
from stacked.api.openapi.parts import Answer, Json, Operation, header

_HEALTH, _CONTAINER, _OWN = "Health", "Adapters one by one", "Stacked"
INFERENCE = "Inference"

_MODEL_KEY = header("model-key", "The inference key of the model; or in the body's `model`")
_MODEL_OCID = header("model-ocid", "The id of the model, instead of a key")
ROUTING = (_MODEL_KEY, _MODEL_OCID)
_STREAMING = header("enable-streaming", "`true` asks for a stream")
_ROUTE = header("route", "The endpoint that `/predict` means, such as `/v1/chat/completions`")
_ROUTED = (401, 403, 404, 409, 413, 415, 500, 503)

_BODY: Json = {
    "type": "object",
    "description": "What vLLM's completions (`prompt`) or chat completions (`messages`) take",
    "properties": {
        "model": {"type": "string", "description": "Inference key or model id; left out: the base"},
        "prompt": {},
        "messages": {"type": "array", "items": {"type": "object"}},
        "max_tokens": {"type": "integer"},
        "temperature": {"type": "number"},
        "stream": {"type": "boolean"},
    },
}
_EVENT: Json = {
    "type": "object",
    "description": "One event; the last has `[DONE]`",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_ANSWERS = (
    Answer(200, "vLLM's answer, or a stream of it", {"type": "object"}),
    Answer(200, "Server-sent events", _EVENT, media="text/event-stream"),
)


def operations(health_path: str | None) -> Iterator[Operation]:
    """`health_path` is another path of health."""
    yield from _health(health_path)
    yield from _container()
    yield from _loras()
    yield from _stacked()
    yield from _inference()


def _health(health_path: str | None) -> Iterator[Operation]:
    answer = Answer(200, "Requests are answered", shapes.Health)
    for path in sorted({"/health", "/ping", *([health_path] if health_path else [])}):
        id = f"health_{path.strip('/').replace('/', '_')}"
        yield Operation(id, "GET", path, "Whether it serves", _HEALTH, (answer,), (500, 503))
    one = Answer(200, "The model is served", shapes.ModelHealth)
    for path in ("/models/{name}/health", "/model/{name}/health"):
        id = f"{path.split('/')[1]}_health"
        told = "Whether a model is served"
        yield Operation(id, "GET", path, told, _HEALTH, (one,), (400, 401, 403, 404, 500, 503))


def _container() -> Iterator[Operation]:
    loaded = Answer(200, "It is served", shapes.LoadedModel)
    gone = (
        Answer(200, "It is gone", shapes.RemovedModel),
        Answer(202, "Requests still use it", shapes.RemovedModel),
    )
    errors = (400, 401, 403, 404, 409, 413, 500, 502, 503)
    for word in ("models", "model"):
        path = f"/{word}/{{name}}"
        yield Operation(
            f"load_{word}",
            "POST",
            path,
            "Load an adapter under a key or id",
            _CONTAINER,
            (loaded,),
            errors,
            body=LoadBody,
            body_needed=False,
        )
        told = "Stop serving a key or id"
        yield Operation(f"remove_{word}", "DELETE", path, told, _CONTAINER, gone, errors)


def _loras() -> Iterator[Operation]:
    said = Answer(200, "A sentence", {"type": "string"}, media="text/plain")
    errors = (400, 401, 403, 404, 409, 413, 500, 502, 503)
    for verb, body in (("load", LoadLoraBody), ("unload", UnloadLoraBody)):
        path = f"/v1/{verb}_lora_adapter"
        yield Operation(
            f"{verb}_lora_adapter",
            "POST",
            path,
            f"{verb.capitalize()} an adapter, as vLLM's own endpoint does",
            _CONTAINER,
            (said,),
            errors,
            body=body,
            openai_errors=True,
        )


def _stacked() -> Iterator[Operation]:
    shown = Answer(200, "Everything at a glance", shapes.Status)
    told = "What `stacked status` shows"
    yield Operation(
        "status", "GET", "/stacked/status", told, _OWN, (shown,), (401, 403, 404, 500, 503)
    )
    same = Answer(204, "They are those in use")
    yield Operation(
        "check_settings",
        "POST",
        "/stacked/check",
        "Whether engine settings are those in use",
        _OWN,
        (same,),
        (400, 401, 403, 404, 500, 503),
        body=asked.Settings,
    )
    card = Answer(200, "The model", {"type": "object"})
    yield Operation(
        "show_served_model",
        "GET",
        "/v1/models/{name}",
        "One served model by key or id, as OpenAI's",
        _OWN,
        (card,),
        (400, 401, 403, 404, 500, 503),
        openai_errors=True,
    )
    document = Answer(200, "This document", {"type": "object"})
    yield Operation(
        "openapi", "GET", "/openapi.json", "This document", _OWN, (document,), (401, 403, 500)
    )


def _inference() -> Iterator[Operation]:
    routing = (*ROUTING, _STREAMING, _ROUTE)
    below = ("", "/models/{model}", "/model/{model}", "/{deploymentId}")
    for prefix in below:
        for verb in ("predict", "predictWithResponseStream"):
            where = prefix.strip("/").partition("/")[0].strip("{}")
            told = "A stream of an answer" if verb != "predict" else "An answer"
            yield Operation(
                f"{verb}_{where}" if where else verb,
                "POST",
                f"{prefix}/{verb}",
                told,
                INFERENCE,
                _ANSWERS,
                (400, *_ROUTED),
                parameters=routing,
                body=_BODY,
            )
    yield from _of_vllm("", "")
    yield from _of_vllm("/{deploymentId}/predict", "_below_a_deployment")
    yield from _of_vllm("/{deploymentId}/predictWithResponseStream", "_streamed_by_a_deployment")


def _of_vllm(prefix: str, where: str) -> Iterator[Operation]:
    """What is below a deployment's verb is a path of vLLM's; its other paths are, too."""
    names = ["completions", "chat/completions"]
    for name in names:
        yield Operation(
            f"{name.replace('/', '_')}{where}",
            "POST",
            f"{prefix}/v1/{name}",
            "As OpenAI's",
            INFERENCE,
            _ANSWERS,
            (400, *_ROUTED),
            parameters=(*ROUTING, _STREAMING) if prefix else ROUTING,
            body=_BODY,
            openai_errors=True,
        )
    yield Operation(
        f"list_served_models{where}",
        "GET",
        f"{prefix}/v1/models",
        "What is served, as OpenAI's",
        INFERENCE,
        (Answer(200, "The models", {"type": "object"}),),
        (401, 403, 404, 500, 503),
        openai_errors=True,
    )
    if prefix.endswith("/predict"):
        yield Operation(
            f"tokenize{where}",
            "POST",
            f"{prefix}/tokenize",
            "The tokens of a prompt, as vLLM's",
            INFERENCE,
            (Answer(200, "The tokens", {"type": "object"}),),
            (400, *_ROUTED),
            parameters=ROUTING,
            body={"type": "object"},
            openai_errors=True,
        )
