"""The front door before doubles: what of a request reaches which app, and in which shape."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import requests
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp, Message

from stacked.api.admission import FrontDoor
from stacked.config import ServerConfig
from stacked.core import ModelId
from stacked.engine.openai import selected
from stacked.errors import KeyUnknown
from stacked.groups.routing import Route
from stacked.service import Service
from tests.api.doors import door_of, sdk_config, served, signer

KEYS = {"a": "a", "meta-llama/L (1)": "meta-llama/L (1)", "größe": "größe", "base": "base"}


class Double:
    """A service whose models are names alone; it keeps what each request was admitted by."""

    def __init__(self, app: Any, **server: Any) -> None:
        self.openai_app = app
        self.config = SimpleNamespace(server=ServerConfig(**server))
        self.predict_endpoint = None
        self.names: dict[str, str] = {}

    def admit(self, names: dict[str, str], end: Callable[[], None]) -> Any:
        self.names = dict(names)
        for name in names.values():
            if name not in KEYS:
                raise KeyUnknown(f"{name!r} is not here")
        key = next(iter(names.values()), "base")
        route = Route(key, key, ModelId("ocid1.x.y.z"), None, None, 1)
        return SimpleNamespace(route=route, lease=nullcontext())


class Asked(BaseModel):
    """What the double declares of its bodies, as vLLM does."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    stream: bool = False
    max_tokens: int | None = None


def vllm() -> FastAPI:
    """An app with the shapes of vLLM's: what it was asked, streams, and its framework's errors."""
    app = FastAPI()

    @app.post("/tokenize")
    @app.post("/invocations")
    async def seen(request: Request) -> JSONResponse:
        selection = selected.get()
        return JSONResponse(
            {
                "path": request.url.path,
                "model": selection.label if selection else None,
                "headers": dict(request.headers),
                "body": json.loads(await request.body() or b"null"),
            }
        )

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def declared(request: Request, asked: Asked) -> JSONResponse:
        return await seen(request)

    @app.get("/v1/models")
    async def models() -> dict[str, list[str]]:
        return {"data": []}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse("one 1")

    @app.post("/v1/messages")
    async def events() -> StreamingResponse:
        return StreamingResponse(iter([b"data: 1\n\n"]), media_type="text/event-stream")

    return app


def ours() -> FastAPI:
    app = FastAPI(redirect_slashes=False)

    @app.post("/stacked/echo")
    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "serving"}

    @app.api_route("/{rest:path}", methods=["GET", "POST", "DELETE"])
    async def rest(rest: str, request: Request) -> JSONResponse:
        return JSONResponse({"ours": request.scope["path"]}, status_code=404)

    return app


def client_of(double: Double, app: ASGIApp | None = None) -> httpx.AsyncClient:
    door = FrontDoor(cast(Service, double), app or ours())
    transport = httpx.ASGITransport(app=door, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here")


@pytest.fixture
def double() -> Double:
    return Double(vllm(), max_body_bytes=2000)


@pytest.fixture
def http(double: Double) -> httpx.AsyncClient:
    return client_of(double)


PROMPT = {"prompt": "x"}
SAGEMAKER = "X-Amzn-SageMaker-Adapter-Identifier"


# -- which model --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/invocations", "/v1/completions", "/predict", "/tokenize"])
async def test_sagemakers_header_names_the_model_on_every_path(
    http: httpx.AsyncClient, path: str
) -> None:
    answer = await http.post(path, json=PROMPT, headers={SAGEMAKER: "a"})
    tree = answer.json()
    assert (answer.status_code, tree["model"], tree["body"]["model"]) == (200, "a", "a")
    assert SAGEMAKER.lower() not in tree["headers"], "it was read, and once is enough"
    unknown = await http.post(path, json=PROMPT, headers={SAGEMAKER: "nope"})
    assert unknown.status_code == 404
    assert "KeyUnknown" in unknown.text


async def test_every_place_that_names_a_model_is_asked_for(
    http: httpx.AsyncClient, double: Double
) -> None:
    headers = [
        ("model-key", "a"),
        ("Model-OCID", "a"),
        ("model-key", "a "),
        (SAGEMAKER, "a"),
        ("x-amzn-sagemaker-adapter-alias", "a"),
    ]
    body = {"model": "a", "chat_request": {"model": "a"}, "completion_request": {"model": "a"}}
    await http.post("/models/a/predict", json=body, headers=headers)
    assert set(double.names.values()) == {"a"}
    assert set(double.names) == {
        "header model-key",
        "header model-key (2)",
        "header model-ocid",
        "header x-amzn-sagemaker-adapter-identifier",
        "header x-amzn-sagemaker-adapter-alias",
        "path",
        "body model",
        "body chat_request model",
        "body completion_request model",
    }


@pytest.mark.parametrize("sent", ["größe".encode(), "größe".encode("latin-1"), b"gr%C3%B6%C3%9Fe"])
async def test_a_key_of_any_script_is_read_and_answered(
    http: httpx.AsyncClient, sent: bytes
) -> None:
    answer = await http.post("/predict", json=PROMPT, headers=[(b"model-key", sent)])
    assert answer.json()["model"] == "größe"
    assert answer.headers["model-key"] == "gr%C3%B6%C3%9Fe"


@pytest.mark.parametrize(
    "path",
    [
        "/models/meta-llama%2FL%20(1)/predict",
        "/models/meta-llama/L%20(1)/predict",
        "/model/meta-llama/L (1)/predict/",
    ],
)
async def test_a_path_names_a_key_with_a_slash(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json=PROMPT)
    assert answer.json()["model"] == "meta-llama/L (1)"
    assert answer.headers["model-key"] == "meta-llama/L (1)"


async def test_no_web_socket_gets_in(double: Double) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/realtime", "raw_path": b"/v1/realtime"}
    more = {"headers": [], "query_string": b"model=a", "subprotocols": [], "root_path": ""}
    await FrontDoor(cast(Service, double), FastAPI())({**scope, **more}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert double.names == {}


# -- which endpoint -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "inner", "streams"),
    [
        ("/predict", {}, "/v1/completions", None),
        ("/predict/", {}, "/v1/completions", None),
        ("/predict", {"route": "/v1/chat/completions"}, "/v1/chat/completions", None),
        ("/predict", {"route": "/tokenize"}, "/tokenize", None),
        ("/predictWithResponseStream", {"route": "/tokenize"}, "/tokenize", True),
        ("/predictWithResponseStream", {}, "/v1/completions", True),
        ("/predictWithResponseStream/v1/completions", {}, "/v1/completions", True),
        ("/predict/v1/completions", {"enable-streaming": "true"}, "/v1/completions", True),
        ("/predict/tokenize", {}, "/tokenize", None),
        ("/predict/v1/completions", {"route": "/v1/completions"}, "/v1/completions", None),
        ("/v1/completions", {"enable-streaming": "true"}, "/v1/completions", None),
        ("/v1/completions/", {"route": "/tokenize"}, "/v1/completions", None),
    ],
)
async def test_endpoint_and_stream_are_those_that_were_asked_for(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], inner: str, streams: bool | None
) -> None:
    tree = (await http.post(path, json=PROMPT, headers=headers)).json()
    assert tree["path"] == inner
    assert tree["body"].get("stream") == streams


@pytest.mark.parametrize(
    "route", ["/pause", "/v1/models", "/v1/nothing", "/v1/load_lora_adapter", "/predict", "", "x"]
)
async def test_a_route_that_runs_no_model_is_refused(http: httpx.AsyncClient, route: str) -> None:
    answer = await http.post("/predict", json=PROMPT, headers={"route": route})
    assert answer.status_code == 400
    assert answer.json()["code"] == "ParameterInvalid"
    assert "header route" in answer.json()["message"]


async def test_a_route_that_is_not_the_paths_is_refused(http: httpx.AsyncClient) -> None:
    headers = {"route": "/tokenize"}
    answer = await http.post("/predict/v1/completions", json=PROMPT, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "ParameterInvalid"


async def test_a_stream_below_predict_is_bare(http: httpx.AsyncClient) -> None:
    below = await http.post("/predict/v1/messages", json={})
    assert below.headers["content-type"] == "text/event-stream"
    assert (await http.post("/v1/messages", json={})).headers["content-type"] != "text/event-stream"


# -- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "path", "status"),
    [
        (None, "/predict", 200),
        (None, "/predict/v1/completions", 200),
        (None, "/v1/completions", 400),
        ("refuse", "/predict", 400),
        ("ignore", "/v1/completions", 200),
    ],
)
async def test_unknown_parameters_are_ignored_or_refused_by_surface(
    setting: Any, path: str, status: int
) -> None:
    async with client_of(Double(vllm(), unknown_parameters=setting)) as http:
        answer = await http.post(path, json={**PROMPT, "max_token": 3})
    assert answer.status_code == status
    if status == 400:
        assert "did you mean 'max_tokens'" in answer.text


@pytest.mark.parametrize("path", ["/predict", "/v1/completions", "/tokenize", "/invocations"])
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"best_of": 2}, 400),
        ({"best_of": 1}, 200),
        ({"best_of": None}, 200),
        ({"functions": [{"name": "f"}]}, 400),
        ({"functions": []}, 200),
        ({"function_call": {"name": "f"}}, 400),
        ({"early_stopping": True}, 400),
        ({"early_stopping": False}, 200),
        ({"guided_json": {}}, 400),
        ({"user": "u", "metadata": {"a": "b"}}, 200),
    ],
)
async def test_what_vllm_would_leave_out_without_a_word_is_refused(
    http: httpx.AsyncClient, path: str, given: dict[str, Any], status: int
) -> None:
    answer = await http.post(path, json=PROMPT | given)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert "ParameterUnsupported" in answer.text
        assert next(iter(given)) in answer.text


# -- coded bodies -------------------------------------------------------------------------------

BODY = json.dumps({"model": "a", "prompt": "x"}).encode()


def zipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


def raw_deflate(body: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(body) + made.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", zipped(BODY)),
        ("GZIP", zipped(BODY)),
        ("x-gzip", zipped(BODY[:9]) + zipped(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
    ],
    ids=["gzip", "GZIP", "two members", "zlib", "raw deflate", "identity"],
)
async def test_a_coded_body_is_decoded_for_both_apps(
    http: httpx.AsyncClient, coding: str, body: bytes
) -> None:
    headers = {"content-encoding": coding, "content-type": "application/json"}
    answer = await http.post("/v1/completions", content=body, headers=headers)
    assert answer.json()["body"] == {"model": "a", "prompt": "x"}
    assert "content-encoding" not in answer.json()["headers"]
    echo = await http.post("/stacked/echo", content=body, headers=headers)
    assert echo.json() == {"model": "a", "prompt": "x"}


@pytest.mark.parametrize(
    ("coding", "body", "status", "code"),
    [
        ("br", BODY, 415, "EncodingUnsupported"),
        ("gzip, gzip", zipped(zipped(BODY)), 415, "EncodingUnsupported"),
        ("gzip", BODY, 400, "BodyInvalid"),
        ("gzip", zipped(BODY)[:-4], 400, "BodyInvalid"),
        ("gzip", zipped(BODY) + b"more", 400, "BodyInvalid"),
        ("gzip", zipped(b"") * 40, 400, "BodyInvalid"),
        ("deflate", BODY, 400, "BodyInvalid"),
        ("gzip", zipped(b" " * 100_000), 413, "BodyTooLarge"),
        ("gzip", zipped(b" " * 1900) * 2, 413, "BodyTooLarge"),
    ],
    ids=["br", "twice", "none", "cut", "more", "members", "not deflate", "bomb", "two members"],
)
async def test_a_coded_body_that_cannot_be_is_refused(
    http: httpx.AsyncClient, coding: str, body: bytes, status: int, code: str
) -> None:
    assert len(body) < 2000, "what is too large is so after it is decoded"
    answer = await http.post("/predict", content=body, headers={"content-encoding": coding})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_a_signature_is_of_the_bytes_as_they_were_sent(tmp_path: Path) -> None:
    alice = sdk_config(tmp_path)
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    with served(door_of(ours(), tmp_path)) as url:
        sent = {"data": zipped(b'{"a": 1}'), "headers": headers, "timeout": 30}
        answer = requests.post(f"{url}/stacked/echo", auth=signer(alice), **sent)
        assert (answer.status_code, answer.json()) == (200, {"a": 1})


# -- shapes and verbs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/predict/v1/nothing", 404),
    ],
)
async def test_errors_of_paths_under_v1_have_openais_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == {404: "NotFound", 405: "MethodNotAllowed"}[status]
    assert f"{method} " in error["message"]
    assert len(answer.content) == int(answer.headers["content-length"])
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/health/", "/v1/models/"])
def test_head_is_get_without_its_body(double: Double, path: str) -> None:
    with served(FrontDoor(cast(Service, double), ours())) as url, httpx.Client() as http:
        got, head = http.get(url + path), http.head(url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert got.content
        assert head.headers["content-length"] == got.headers["content-length"]
        assert head.headers["content-type"] == got.headers["content-type"]
        assert http.head(f"{url}/health").status_code == 200, "the connection is in order"


def test_a_head_is_signed_as_one(tmp_path: Path) -> None:
    alice = sdk_config(tmp_path)
    door = door_of(ours(), tmp_path)
    with served(door) as url:
        answer = requests.head(f"{url}/stacked/echo", auth=signer(alice), timeout=30)
        assert answer.status_code == 404, "it came in, and there is nothing to GET"
        assert requests.head(f"{url}/stacked/echo", timeout=30).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/health/", 200),
        ("/predict/health", 200),
        ("/ocid1.datasciencemodeldeployment.oc1..d/predict/health", 401),
        ("/models/a%2Fhealth", 401),
        ("/health%2F", 401),
        ("/stacked%2Fecho", 401),
    ],
)
def test_who_does_not_sign_learns_whether_it_lives_and_nothing_else(
    tmp_path: Path, path: str, status: int
) -> None:
    with served(door_of(ours(), tmp_path)) as url:
        assert requests.get(url + path, timeout=30).status_code == status
