"""vLLM's whole HTTP surface, held against admission: its routes, and how a model is named there.

vLLM's real app is built, with everything on, and its sources are read. What appears in a new
version and stands in no table here fails: someone has to look at it before it is open.
"""

from __future__ import annotations

import ast
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.routing import WebSocketRoute

from stacked.engine.parameters import (
    INFORMATIVE,
    READ_AT,
    UNREAD,
    bodies,
    client_parameters,
    known_parameters,
)
from stacked.engine.support import app_builders, serve_parser
from stacked.serving.names import MODEL_HEADERS, NESTED_REQUESTS
from stacked.serving.targets import is_open, model_target
from tests.engine.releases import RELEASE, since

TASKS = ("generate", "render", "realtime", "transcription")
POOLING = ("pooling", "classify", "embed", "scoring")

# A request for a model: admission resolves its names and takes a lease.
MODEL = {
    "/generative_scoring",
    "/inference/v1/generate",
    "/invocations",
    "/detokenize",
    "/tokenize",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/v2/rerank",
    "/v2/embed",
    "/v1/systemone",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/responses/{response_id}/cancel",
    "/v1/audio/transcriptions",  # forms, which admission does not take for JSON, and refuses
    "/v1/audio/translations",
}
# What only tells something, and runs no model.
OPEN = {
    "/load",
    "/metrics",
    "/v1/models",
    "/v1/responses/{response_id}",
    "/version",
}
# Ours stand at these.
OURS = {
    "/docs",
    "/health",
    "/openapi.json",
    "/ping",
    "/redoc",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
}
# Administrative, or of other servers than ours: nobody reaches it.
CLOSED = {
    "/abort_requests",
    "/adapters",
    "/adapters/{adapter_name}",
    "/collective_rpc",
    "/docs/oauth2-redirect",
    "/finish_weight_update",
    "/get_world_size",
    "/inference/v1/abort_requests",
    "/init_weight_transfer_engine",
    "/is_paused",
    "/is_scaling_elastic_ep",
    "/is_sleeping",
    "/kv_event_sources",
    "/pause",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/scale_elastic_ep",
    "/server_info",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_weight_update",
    "/update_weight_version",
    "/update_weights",
    "/v1/realtime",  # a WebSocket: the door takes none
    "/wake_up",
    "/weight_checker",
    "/weight_info",
}
# Headers that vLLM's app or SageMaker's standard has a name for, and that name no model.
OTHER_HEADERS = {
    "x-amzn-sagemaker-closed-session-id",
    "x-amzn-sagemaker-new-session-id",
    "x-amzn-sagemaker-session-id",  # sessions are off, and then refused by vLLM
    "x-anthropic-billing-header",
    "x-data-parallel-rank",
    "x-request-id",
    "x-session-id",
    "x-vllm-priority",
}
# Fields below the top that name a model, and not one of those that are served.
OTHER_FIELDS = {
    "generate_response.model": "who gave an answer that is only put into words",
    "generate_responses.model": "the same",
    "input.svg_usage.model": "OpenAI's image tool",
    "input.tools.model": "OpenAI's image tool",
    "input.tools.svg.model": "OpenAI's image tool",
    "tools.model": "OpenAI's image tool",
    "tools.svg.model": "OpenAI's image tool",
}


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    """vLLM's own app with every route that its switches can bring, and no engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        scale_out = ["--enable-scale-out"] if RELEASE >= (0, 30) else []
        args = serve_parser().parse_args(["--model", "none", *scale_out])
        build_app, _ = app_builders()
        built = build_app(args, TASKS, None)
        for kind in POOLING:
            module = importlib.import_module(f"vllm.entrypoints.pooling.{kind}.api_router")
            built.include_router(module.router)
        yield built


def test_every_route_of_vllm_is_looked_at(app: Any) -> None:
    paths = {route.path for route in app.routes}
    tables = (MODEL, OPEN, OURS, CLOSED)
    assert paths <= set().union(*tables), "classify these"
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_every_route_goes_where_its_table_says(app: Any) -> None:
    for route in app.routes:
        if isinstance(route, WebSocketRoute) or route.path in OURS:
            continue
        for method in getattr(route, "methods", None) or {"GET"}:
            asks = model_target(method, route.path) is not None
            reads = is_open(method, route.path)
            assert asks == (route.path in MODEL), (method, route.path)
            assert reads == (route.path in OPEN), (method, route.path)


def test_every_field_that_names_a_model_is_read_by_admission(app: Any) -> None:
    read = {"model", *(f"{nested}.model" for nested in NESTED_REQUESTS)}
    found: dict[str, set[str]] = {}
    for path, models in bodies(app):
        for model in models:
            for place in places(model):
                if re.search("model|lora|adapter", place.rpartition(".")[2]):
                    found.setdefault(place, set()).add(path)
    theirs = {place: paths for place, paths in found.items() if place not in read | {*OTHER_FIELDS}}
    assert set().union(*theirs.values(), set()) <= {
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }, theirs
    assert len(found["model"]) > 15


def places(kind: Any, seen: tuple[Any, ...] = (), at: str = "") -> Iterator[str]:
    """The dotted name of every field of a body, as deep as models and typed dicts go."""
    for argument in typing.get_args(kind):
        yield from places(argument, seen, at)
    if kind in seen or not isinstance(kind, type):
        return
    fields: dict[str, Any] = {}
    if issubclass(kind, BaseModel):
        fields = {name: field.annotation for name, field in kind.model_fields.items()}
    elif typing.is_typeddict(kind):
        fields = typing.get_type_hints(kind)
    for name, annotation in fields.items():
        yield f"{at}{name}"
        yield from places(annotation, (*seen, kind), f"{at}{name}.")


def sources(package: str, *below: str) -> Iterator[tuple[str, ast.Module]]:
    module = importlib.import_module(package)
    assert module.__file__
    root = Path(module.__file__).parent
    for path in root.rglob("*.py"):
        relative = path.relative_to(root).as_posix()
        if not below or relative.startswith(below):
            yield relative, ast.parse(path.read_text(encoding="utf-8"))


def test_every_header_that_vllm_reads_is_looked_at() -> None:
    found = set()
    for package in ("vllm", "model_hosting_container_standards"):
        for _, tree in sources(package, *(("entrypoints/",) if package == "vllm" else ())):
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and re.fullmatch(r"[Xx](-\w+)+", str(node.value)):
                    found.add(str(node.value).lower())
    assert "x-amzn-sagemaker-adapter-identifier" in found
    assert found <= OTHER_HEADERS | {*MODEL_HEADERS}


def test_no_route_takes_a_model_from_the_query_or_a_declared_header(app: Any) -> None:
    for route in app.routes:
        dependant = getattr(route, "dependant", None)
        if dependant is not None and (route.path in MODEL or route.path in OPEN):
            names = {each.name for each in (*dependant.query_params, *dependant.header_params)}
            assert names <= {"starting_after", "stream"}, route.path


# -- parameters that are taken and not read ----------------------------------------------------

READERS = ("entrypoints/", "renderers/", "tool_parsers/", "reasoning/", "parser/")
# Read by way of another class, of which it makes one.
MADE_INTO = {"BatchChatCompletionRequest": "ChatCompletionRequest"}
# An echo in the answer is no use of it.
ECHOED = {"max_tool_calls", "service_tier", "metadata", "user"}


class Reads(ast.NodeVisitor):
    """Which names are read of a request, of `self` in which class, and as texts in protocols."""

    def __init__(self) -> None:
        self.of_requests: set[str] = set()
        self.of_self: set[tuple[str, str]] = set()
        self.texts: set[str] = set()
        self._class = ""
        self._protocol = False

    def read(self, file: str, tree: ast.Module) -> None:
        self._protocol = file.endswith("protocol.py")
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        holder = node.value
        name = getattr(holder, "id", getattr(holder, "attr", ""))
        if isinstance(node.ctx, ast.Load) and name == "self":
            self.of_self.add((self._class, node.attr))
        elif isinstance(node.ctx, ast.Load) and "req" in name.lower():
            self.of_requests.add(node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if getattr(node.func, "id", "") == "getattr" and isinstance(node.args[1], ast.Constant):
            self.of_requests.add(str(node.args[1].value))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self._protocol and isinstance(node.value, str):
            self.texts.add(node.value)


@pytest.fixture(scope="module")
def reads() -> Reads:
    found = Reads()
    for file, tree in sources("vllm", *READERS):
        found.read(file, tree)
    return found


def unread(models: tuple[Any, ...], reads: Reads) -> set[str]:
    """The fields of these models that nothing in vLLM reads, as far as its sources show."""
    found: set[str] = set()
    for model in models:
        line = list(model.__mro__)
        if other := MADE_INTO.get(model.__name__):
            line += getattr(importlib.import_module(model.__module__), other).__mro__
        names = {each.__name__ for each in line}
        own = {"BatchChatCompletionRequest"} & names
        for field in model.model_fields:
            by_self = any((name, field) in reads.of_self for name in names)
            by_text = not own and field in reads.texts
            handed_on = own and any(field in getattr(e, "model_fields", {}) for e in line[1:])
            if not (field in reads.of_requests or by_self or by_text or handed_on):
                found.add(field)
    return found


@since(0, 31, "before, it takes `thinking` and never reads it")
def test_what_vllm_takes_and_never_reads_is_refused_or_of_no_weight(app: Any, reads: Reads) -> None:
    seen = set()
    for path, models in bodies(app):
        if path not in MODEL or path.startswith("/v1/audio/"):
            continue
        declared = {field for model in models for field in model.model_fields}
        read = READ_AT.get(path, frozenset())
        dead = unread(models, reads) | (client_parameters(path) - declared) | (declared & ECHOED)
        assert dead <= {*UNREAD} | INFORMATIVE, f"{path}: refuse these, or say why not"
        # And nothing is refused that vLLM has begun to read.
        assert (declared & {*UNREAD}) - dead == read, path
        seen |= dead
    assert {"best_of", "functions", "function_call", "early_stopping"} <= seen


def test_what_vllm_has_removed_and_says_it_ignores_is_refused() -> None:
    try:
        from vllm.entrypoints.serve.engine.protocol import _REMOVED_GUIDED_FIELDS as removed
    except ImportError:  # up to 0.31, where they stood elsewhere or were read
        pytest.skip("this vLLM has no such list")
    assert removed <= {*UNREAD}


def test_what_the_clients_know_is_known(app: Any) -> None:
    known = known_parameters(app)
    assert {"messages", "top_k", "store", "service_tier"} <= known["/v1/chat/completions"]
    assert {"prompt", "top_k", "best_of"} <= known["/v1/completions"]
    assert {"input", "conversation"} <= known["/v1/responses"]
