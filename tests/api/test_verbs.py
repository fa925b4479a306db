"""Verbs and paths that are not there: HEAD, 404 and 405 in OpenAI's shape, and who may ask."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import httpx
import pytest
import requests

from stacked.api.gateway import Gateway
from stacked.service import Service
from tests.api.doors import gateway_of, sdk_config, served, signer
from tests.api.doubles import Double, client_of, ours, vllm


@pytest.fixture
def double() -> Double:
    return Double(vllm(), max_body_bytes=2000)


@pytest.fixture
def http(double: Double) -> httpx.AsyncClient:
    return client_of(double)


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
    with served(Gateway(cast(Service, double), ours())) as url, httpx.Client() as http:
        got, head = http.get(url + path), http.head(url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert got.content
        assert head.headers["content-length"] == got.headers["content-length"]
        assert head.headers["content-type"] == got.headers["content-type"]
        assert http.head(f"{url}/health").status_code == 200, "the connection is in order"


def test_a_head_is_signed_as_one(tmp_path: Path) -> None:
    alice = sdk_config(tmp_path)
    door = gateway_of(ours(), tmp_path)
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
    with served(gateway_of(ours(), tmp_path)) as url:
        assert requests.get(url + path, timeout=30).status_code == status
