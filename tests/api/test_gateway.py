"""The gateway before doubles: which model and endpoint a request means, and what is refused."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from stacked.api.gateway import Gateway
from stacked.service import Service
from tests.api.doubles import Asked, Double, client_of, vllm


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
    await Gateway(cast(Service, double), FastAPI())({**scope, **more}, receive, send)
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


class More(Asked):
    """A body of another engine's."""

    top_z: int = 0


async def test_parameters_are_those_of_the_engine_that_serves_now(
    http: httpx.AsyncClient, double: Double
) -> None:
    asked = {**PROMPT, "top_z": 1}
    assert (await http.post("/v1/completions", json=asked)).status_code == 400
    another = FastAPI()

    @another.post("/v1/completions")
    async def completions(given: More) -> dict[str, int]:
        return {"top_z": given.top_z}

    double.use(another)
    assert (await http.post("/v1/completions", json=asked)).json() == {"top_z": 1}


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


@pytest.mark.parametrize(
    ("headers", "id"),
    [
        ({"opc-request-id": "mine"}, "mine"),
        ({"x-request-id": "mine"}, "mine"),
        ({"opc-request-id": "mine", "x-request-id": "other"}, "mine"),
        ({}, None),
    ],
)
async def test_vllm_gets_the_requests_id_to_make_the_answers_of(
    http: httpx.AsyncClient, headers: dict[str, str], id: str | None
) -> None:
    answer = await http.post("/v1/completions", json=PROMPT, headers=headers)
    given = answer.json()["headers"]["x-request-id"]
    assert given == answer.headers["opc-request-id"]
    assert id in (None, given)
