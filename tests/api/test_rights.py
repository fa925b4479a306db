"""What each kind of credential reaches, of every route that there is (promise P9).

The routes are those of the real apps, ours and vLLM's. What answers behind the gateway only notes
that it was reached.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.config import AuthConfig, Listener
from stacked.core import ModelId
from stacked.engine import support
from stacked.engine.creating import prepare
from stacked.groups.leases import Lease
from stacked.groups.routing import Route
from stacked.keys import Rights, create
from stacked.service import Service
from stacked.serving import Admission
from stacked.serving.targets import Target
from tests.api.doors import config_of

# The whole of what a serving credential reaches: a path that is not here is an administrator's.
SERVING = """
POST /predict
POST /predictWithResponseStream
POST /models/{model}/predict
POST /models/{model}/predictWithResponseStream
POST /model/{model}/predict
POST /model/{model}/predictWithResponseStream
POST /{deploymentId}/predict
POST /{deploymentId}/predictWithResponseStream
POST /{deploymentId}/predict/v1/completions
POST /{deploymentId}/predict/v1/chat/completions
POST /{deploymentId}/predict/tokenize
POST /{deploymentId}/predictWithResponseStream/v1/completions
POST /{deploymentId}/predictWithResponseStream/v1/chat/completions
GET /{deploymentId}/predict/v1/models
GET /{deploymentId}/predictWithResponseStream/v1/models
POST /openai/deployments/{key}/chat/completions
POST /openai/deployments/{key}/completions
POST /openai/deployments/{key}/embeddings
POST /openai/responses
POST /v1/chat/completions
POST /v1/chat/completions/batch
POST /v1/chat/completions/render
POST /v1/chat/completions/derender
POST /v1/completions
POST /v1/completions/render
POST /v1/completions/derender
POST /v1/responses
POST /v1/responses/render
POST /v1/messages
POST /v1/messages/render
POST /v1/messages/count_tokens
POST /v1/feedback
POST /v1/systemone
POST /inference/v1/generate
POST /invocations
POST /v2/models/{model}/infer
POST /tokenize
POST /detokenize
POST /generative_scoring
GET /v1/models
GET /v1/models/{name}
GET /version
GET /v2
GET /v2/models
GET /v2/models/{name}
GET /v2/models/{name}/ready
""".strip().splitlines()
# What tells of all models and callers: for credentials that are not held to some keys.
OF_ALL = """
GET /metrics
GET /load
GET /v1/responses/{response_id}
POST /v1/responses/{response_id}/cancel
""".strip().splitlines()
EVERYONE = [
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /ping",
    "GET /v2/health/live",
    "GET /v2/health/ready",
]
ADMIN = """
GET /models/{name}/health
GET /model/{name}/health
POST /models/{name}
POST /model/{name}
DELETE /models/{name}
DELETE /model/{name}
POST /v1/load_lora_adapter
POST /v1/unload_lora_adapter
GET /stacked/experiments
GET /stacked/experiments/{key}
POST /ping
GET /openapi.json
GET /docs
GET /docs/oauth2-redirect
GET /redoc
GET /kv_event_sources
POST /scale_elastic_ep
POST /is_scaling_elastic_ep
POST /inference/v1/abort_requests
""".strip().splitlines()
# Everything below these is administrative.
ADMIN_BELOW = ("/20190101/", "/stacked/")

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE")


@dataclass
class Reached:
    """Apps behind a gateway that note which request reached them, in the form that they get it."""

    server: dict[str, Any]
    seen: list[str] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = config_of(**self.server)
        self.deployments = SimpleNamespace(check_served=lambda id: None)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(f"{scope['method']} {scope['path']}")
        self.headers = list(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def look(self) -> None: ...

    async def opened(self, after: int) -> None: ...

    def admit(self, target: Target, scope: Scope, body: bytes, end: Any) -> Any:
        self.seen.append(f"POST {target.path or '/predict'}")
        route: Route[Any] = Route("a", "a", ModelId("ocid1.m.oc1..a"), None, None, 1)

        async def answer(receive: Receive, send: Send, report: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        return Admission(route, cast(Lease, nullcontext()), answer, 1)


@dataclass
class Door:
    """A gateway, its credentials by kind, and what is behind it."""

    reached: Reached
    gateway: ASGIApp
    tokens: dict[str, str]

    async def ask(self, kind: str, method: str, raw: str, **headers: str) -> int:
        """The status of a request as it would stand on the request line."""
        self.reached.seen.clear()
        given = {"authorization": f"Bearer {self.tokens[kind]}"} if kind in self.tokens else {}
        scope: Scope = {
            "type": "http",
            "method": method,
            "path": raw,
            "raw_path": raw.encode("latin-1"),
            "query_string": b"",
            "headers": [
                (name.replace("_", "-").encode(), text.encode())
                for name, text in (given | headers | {"accept": "x"}).items()
            ],
        }
        status: list[int] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        await self.gateway(scope, receive, send)
        return status[0]


def door_of(data_dir: Path, **server: Any) -> Door:
    reached = Reached({"auth": AuthConfig(bearer=True), **server})
    service = cast(Service, reached)
    gateway = Gateway(service, reached.app, open_gate(reached.config, data_dir))
    tokens = {
        "serving": create(data_dir, "serving"),
        "held": create(data_dir, "held", Rights(keys=frozenset({"a"}))),
        "admin": create(data_dir, "admin", Rights(admin=True)),
    }
    return Door(reached, gateway, tokens)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return door_of(tmp_path_factory.mktemp("data"))


def declared(app: FastAPI) -> Iterator[str]:
    """The methods and paths of an app's routes."""
    for route in app.routes:
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD":
                yield f"{method} {getattr(route, 'path', '').replace(':path}', '}')}"


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """Every route of the real apps, and those that the gateway itself has."""
    prepare()
    build_app, _ = support.app_builders()
    options = support.serve_parser().parse_args(["--model", "none"])
    service = SimpleNamespace(config=config_of(), app=build_app(options, ("generate",), None))
    ours = create_routes(cast(Service, service))
    from stacked.api.openapi import of_server

    documented = {
        f"{method.upper()} {path}"
        for path, item in of_server(ours)["paths"].items()
        for method in item
    }
    return {*declared(ours), *declared(service.app), *documented}


def test_every_route_stands_in_the_table(routes: set[str]) -> None:
    """A new one must be placed: nobody decides by oversight who may call it."""
    placed = {*SERVING, *OF_ALL, *EVERYONE, *ADMIN}
    new = {each for each in routes - placed if not each.split()[1].startswith(ADMIN_BELOW)}
    assert new == set()


def of(template: str) -> tuple[str, str]:
    method, path = template.split()
    return method, re.sub(r"{\w+}", "ocid1.x.oc1..y", path)


async def test_each_kind_of_credential_reaches_its_routes_and_no_other(
    door: Door, routes: set[str]
) -> None:
    for template in sorted({*routes, *SERVING, *OF_ALL, *EVERYONE, *ADMIN}):
        method, path = of(template)
        may = {
            "nobody": template in EVERYONE,
            "serving": template in (*EVERYONE, *SERVING, *OF_ALL),
            "held": template in (*EVERYONE, *SERVING),
            "admin": True,
        }
        for kind, reaches in may.items():
            refused = 401 if kind == "nobody" else 403
            status = await door.ask(kind, method, path)
            assert bool(door.reached.seen) is reaches, (kind, template)
            assert status == (200 if reaches else refused)


def spellings(path: str) -> Iterator[str]:
    """Ways in which a path might be written so that one side reads it and another does not."""
    yield path
    yield f"{path}/"
    yield f"/{path}"
    yield f"///{path}//"
    yield path.replace("/", "//")
    yield path.replace("/", "/./")
    yield f"/v1/..{path}"
    yield f"/v1/models/..%2F..{path}"
    yield f"/v1/models{path}"
    yield f"/models/a/predict/..{path}"
    yield f"/models/a/predict{path}"
    yield path.upper()
    yield path.title()
    yield f"{path};x=/predict"
    yield f"{path};/v1/models"
    yield f"{path}%00"
    yield f"{path}%20"
    yield f"{path}%2F"
    yield f"{path}%23/predict"
    yield f"{path}%3F/predict"
    yield f"{path}/predict"
    yield f"{path}/v1/models"
    yield f"{path}\\predict"
    yield path.replace("/", "%2F")
    yield path.replace("/", "%252F")
    yield path.replace("/", "\\")
    yield "/" + "".join(f"%{ord(letter):02x}" for letter in path[1:])
    yield f"/%{ord(path[1]):02X}{path[2:]}"
    yield f"/{quote(quote(path[1:]), safe='')}"
    yield path.removeprefix("/20190101")
    yield f"/20190101{path}"
    for prefix in (
        "/predict",
        "/predictWithResponseStream",
        "/ocid1.x.oc1..y/predict",
        "/openai",
        "/openai/deployments/a",
        "/v1",
        "/v2",
        "/v2/models",
        "/v2/health",
    ):
        yield f"{prefix}{path}"


def is_serving(seen: str, templates: list[str]) -> bool:
    patterns = [re.sub(r"\\{\w+\\}", ".+", re.escape(each)) for each in templates]
    return any(re.fullmatch(each, seen) for each in patterns)


@pytest.mark.parametrize("kind", ["nobody", "serving", "held"])
async def test_no_spelling_of_a_path_leads_where_the_credential_does_not(
    door: Door, routes: set[str], kind: str
) -> None:
    """What is reached is one of the table, in the form in which the app gets it."""
    allowed = [*EVERYONE, *({"serving": SERVING + OF_ALL, "held": SERVING}.get(kind, []))]
    allowed += [each.replace("GET ", "HEAD ") for each in allowed]
    tried = 0
    for path in sorted({of(template)[1] for template in {*routes, *ADMIN}}):
        for raw in spellings(path):
            for method in METHODS:
                status = await door.ask(kind, method, raw)
                tried += 1
                assert all(is_serving(seen, allowed) for seen in door.reached.seen), (method, raw)
                assert door.reached.seen or status in (401, 403), (method, raw, status)
    assert tried > 10_000


async def test_other_methods_in_headers_change_nothing(door: Door) -> None:
    for name in ("x_http_method_override", "x_http_method", "x_method_override", "x_original_url"):
        for value in ("DELETE", "/stacked/status"):
            await door.ask("serving", "POST", "/models/a/predict", **{name: value})
            assert door.reached.seen == ["POST /predict"]
            assert await door.ask("serving", "POST", "/models/a", **{name: "POST"}) == 403


async def test_no_websocket_comes_in(door: Door, tmp_path: Path) -> None:
    """None is served, whoever asks: the upgrade of a connection is no way around a credential."""
    service = cast(Service, door.reached)
    gateway = Gateway(service, create_routes(service), open_gate(door.reached.config, tmp_path))
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    token = f"Bearer {door.tokens['admin']}".encode()
    for path in ("/v1/realtime", "/v1/models", "/health"):
        scope = {"type": "websocket", "path": path, "headers": [(b"authorization", token)]}
        await gateway(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"] * 3


async def test_a_token_goes_no_further_than_the_gate(door: Door) -> None:
    for header in ("authorization", "api_key", "x_api_key"):
        value = door.tokens["admin"]
        headers = {header: f"Bearer {value}" if header == "authorization" else value}
        assert await door.ask("", "GET", "/stacked/status", **headers) == 200
        assert door.reached.headers == [(b"accept", b"x")], header


# -- metrics --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "status"),
    [
        (None, {"nobody": 401, "serving": 200, "held": 403, "admin": 200}),
        ("open", {"nobody": 200, "serving": 200, "held": 200, "admin": 200}),
        ("admin", {"nobody": 401, "serving": 403, "held": 403, "admin": 200}),
        (Listener(port=9), {"nobody": 401, "serving": 403, "held": 403, "admin": 200}),
    ],
)
async def test_metrics_have_a_setting_of_their_own(
    tmp_path: Path, setting: Any, status: dict[str, int]
) -> None:
    door = door_of(tmp_path, metrics=setting)
    for kind, wanted in status.items():
        for method in ("GET", "HEAD"):
            assert await door.ask(kind, method, "/metrics") == wanted, (kind, method)
        # What it opens is this path, and reading it.
        for method, path in (("POST", "/metrics"), ("GET", "/metrics/x"), ("GET", "/load")):
            refused = {"nobody": 401, "held": 403}.get(kind)
            assert refused is None or await door.ask(kind, method, path) == refused
