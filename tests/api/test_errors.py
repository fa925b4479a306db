"""Wrong requests over a real server: a 4xx with a stable code, nothing lost, the engine alive."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from stacked.api.errors import STATUS, status_of, to_plain
from stacked.config import ServerConfig
from stacked.errors import StackedError
from tests.conftest import PROMPT, complete
from tests.serving import Server

GREEDY = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "model": "a"}
MORE_THAN_A_BODY = ServerConfig().max_body_bytes + 1


def test_every_error_has_a_code_of_its_own_and_a_status() -> None:
    kinds = StackedError.tree()
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert 400 <= status_of(kind("said")) < 600
    assert set(STATUS) <= set(kinds)


def test_vllm_errors_take_the_plain_shape_and_others_are_kept_as_text() -> None:
    theirs = {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}
    assert json.loads(to_plain(json.dumps(theirs).encode(), 400)) == {
        "code": "InvalidParameter",
        "message": "too long",
    }
    assert json.loads(to_plain(b"oh no", 503))["message"] == "oh no"
    assert json.loads(to_plain(b"[1]", 500))["code"] == "InternalServerError"


def regex(expression: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": expression}}


WRONG_BODIES: list[tuple[str, bytes, str]] = [
    ("not JSON", b'{"prompt": ', "BodyInvalid"),
    ("a list", b"[1, 2]", "BodyInvalid"),
    ("not UTF-8", b'{"prompt": "\xff\xfe"}', "BodyInvalid"),
    ("NaN", b'{"prompt": "x", "temperature": NaN}', "BodyInvalid"),
    ("nested too deep", b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}", "BodyInvalid"),
    ("a number as model", json.dumps(GREEDY | {"model": 7}).encode(), "ParameterInvalid"),
    ("what is ignored", json.dumps(GREEDY | {"best_of": 7}).encode(), "ParameterUnsupported"),
    ("a wrong type", json.dumps(GREEDY | {"max_tokens": "many"}).encode(), "InvalidParameter"),
    ("too hot", json.dumps(GREEDY | {"temperature": -1}).encode(), "InvalidParameter"),
    ("too long a prompt", json.dumps(GREEDY | {"prompt": "x " * 999}).encode(), "InvalidParameter"),
    ("too many tokens", json.dumps(GREEDY | {"max_tokens": 99999}).encode(), "InvalidParameter"),
    (
        "a costly one",
        json.dumps(GREEDY | {"structured_outputs": {"regex": "(.*)*"}}).encode(),
        "GrammarTooCostly",
    ),
    ("bad grammar", json.dumps(GREEDY | {"structured_outputs": {"regex": "("}}).encode(), ""),
    ("a token that is not", json.dumps(GREEDY | {"prompt": [1, 99999]}).encode(), ""),
    ("no prompt", json.dumps({"model": "a"}).encode(), ""),
    ("an empty body", b"", ""),
]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("body", "code"), [row[1:] for row in WRONG_BODIES], ids=[row[0] for row in WRONG_BODIES]
)
def test_wrong_body_is_a_4xx_on_both_surfaces_and_the_next_request_is_answered(
    http: httpx.Client, answers: dict[str, str], body: bytes, code: str
) -> None:
    headers = {"content-type": "application/json"}
    plain = http.post("/predict", content=body, headers=headers)
    openai = http.post("/v1/completions", content=body, headers=headers)
    assert 400 <= plain.status_code < 500, plain.text
    assert 400 <= openai.status_code < 500, openai.text
    tree = plain.json()
    assert set(tree) == {"code", "message"}
    assert tree["message"]
    assert code in ("", tree["code"])
    assert openai.json()["error"]["message"]
    assert complete(http, "a") == answers["a"]


@pytest.mark.engine
def test_misspelt_parameter_names_the_right_one(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=GREEDY | {"max_token": 7})
    assert answer.status_code == 400
    said = answer.json()["error"]["message"]
    assert http.post("/predict", json=GREEDY | {"max_token": 7}).status_code == 200
    assert "max_token" in said
    assert "'max_tokens'" in said


@pytest.mark.engine
def test_parameters_that_the_openai_client_knows_are_not_refused(http: httpx.Client) -> None:
    extra: dict[str, Any] = {"user": "u", "store": False, "metadata": {}, "service_tier": "auto"}
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    response = http.post("/v1/chat/completions", json=body | extra)
    assert response.status_code == 200, response.text


@pytest.mark.engine
def test_too_large_a_body_is_413_declared_or_not(http: httpx.Client) -> None:
    large = json.dumps(GREEDY | {"prompt": "x" * MORE_THAN_A_BODY}).encode()

    def parts() -> Any:
        for at in range(0, len(large), 1_000_000):
            yield large[at : at + 1_000_000]

    for content in (large, parts()):
        response = http.post("/predict", content=content)
        assert response.status_code == 413
        assert response.json()["code"] == "BodyTooLarge"


@pytest.mark.engine
def test_client_that_leaves_in_the_middle_of_its_body_harms_nobody(
    server: Server, http: httpx.Client, answers: dict[str, str]
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert complete(http, "a") == answers["a"]


@pytest.mark.engine
def test_administrative_paths_of_vllm_are_not_reachable(http: httpx.Client) -> None:
    for path in ("/scale_elastic_ep", "/inference/v1/abort_requests", "/pause", "/sleep"):
        response = http.post(path, json={})
        assert response.status_code == 404
        assert response.json()["code"] == "NotFound"
    assert http.get("/predict").status_code == 404
