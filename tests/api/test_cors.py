"""CORS around the gateway: off by default; where it is on, on every answer, refusals included.

And where nobody needs a credential, no page of another site comes in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from pydantic import ValidationError
from starlette.types import ASGIApp

from stacked.api.cors import with_cors
from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from stacked.config import AuthConfig, CorsConfig
from stacked.engine.options import check_names
from stacked.errors import EngineOptionInvalid
from stacked.service import Service
from tests.api.doors import config_of, gateway_of
from tests.api.doubles import Double, gateway, ours, vllm

PAGE = "https://app.example"
ORIGIN = {"origin": PAGE}
CORS = CorsConfig(origins=(PAGE,))
PATHS = ["/predict", "/v1/chat/completions", "/v1/models", "/20190101/models", "/health", "/none"]


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here")


@pytest.fixture
def signed(tmp_path: Path) -> httpx.AsyncClient:
    """A server that lets no one in who does not sign."""
    return client_of(with_cors(gateway_of(ours(), tmp_path, config_of()), CORS))


@pytest.fixture
def open_to_all() -> httpx.AsyncClient:
    return client_of(with_cors(gateway(Double(vllm())), CORS))


@pytest.mark.parametrize("path", PATHS)
async def test_preflights_of_every_path_are_answered_before_authentication(
    signed: httpx.AsyncClient, path: str
) -> None:
    wanted = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,model-key",
    }
    answer = await signed.options(path, headers=ORIGIN | wanted)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "model-key" in answer.headers["access-control-allow-headers"]


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/health"])
async def test_a_refusal_can_be_read_by_the_page(signed: httpx.AsyncClient, path: str) -> None:
    answer = await signed.post(path, json={}, headers=ORIGIN)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize(("key", "status"), [("a", 200), ("nobody", 404)])
@pytest.mark.parametrize("path", ["/predict", "/v1/completions", "/models/{}/predict"])
async def test_answers_and_errors_of_models_have_the_headers_once(
    open_to_all: httpx.AsyncClient, path: str, key: str, status: int
) -> None:
    body = {"prompt": "x", "model": key}
    answer = await open_to_all.post(path.format(key), json=body, headers=ORIGIN)
    assert answer.status_code == status
    assert answer.headers.get_list("access-control-allow-origin") == [PAGE]


async def test_other_origins_get_no_permission(open_to_all: httpx.AsyncClient) -> None:
    other = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = await open_to_all.options("/predict", headers=other)
    assert preflight.status_code == 400
    answer = await open_to_all.post("/predict", json={"prompt": "x"}, headers=other)
    assert answer.status_code == 200
    for one in (preflight, answer):
        assert "access-control-allow-origin" not in one.headers


async def test_it_is_off_by_default() -> None:
    app = gateway(Double(vllm()))
    assert with_cors(app, CorsConfig()) is app


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://*.a.example", ""])
def test_what_no_browser_sends_as_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        CorsConfig(origins=(origin,))


def test_vllms_own_options_point_to_ours() -> None:
    with pytest.raises(EngineOptionInvalid, match=r"server\.cors\.origins"):
        check_names({"allowed_origins": ["*"]})


# -- pages that send to a loopback address ------------------------------------------------------

SENT = [("GET", "/v1/models"), ("POST", "/predict"), ("DELETE", "/models/a"), ("POST", "/nowhere")]


def local(tmp_path: Path, headers: dict[str, str], **server: Any) -> httpx.AsyncClient:
    """A client that sends these headers to a server, by default one without credentials."""
    config = config_of(**{"auth": AuthConfig()} | server)
    door = Gateway(cast(Service, Double(vllm())), ours(), open_gate(config, tmp_path))
    transport = httpx.ASGITransport(app=with_cors(door, config.server.cors))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=headers)


@pytest.mark.parametrize("host", ["rebound.example:8080", "", "0.0.0.0:8080", "[", "::1", "a@b:x"])
async def test_a_name_that_was_led_to_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    async with local(tmp_path, {"host": host}) as client:
        for method, path in SENT:
            answer = await client.request(method, path, json={"prompt": "x"})
            assert answer.status_code == 403, (method, path)
            assert "not a loopback address" in answer.text


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:8080", ""]
)
async def test_a_page_of_another_origin_is_refused(tmp_path: Path, origin: str) -> None:
    form = {"origin": origin, "content-type": "text/plain"}
    for cors in (CorsConfig(), CORS):
        async with local(tmp_path, form, cors=cors) as client:
            for method, path in SENT:
                answer = await client.request(method, path, content=b'{"prompt": "x"}')
                assert answer.status_code == 403, (method, path)
                assert "server.cors.origins" in answer.text


@pytest.mark.parametrize(
    ("headers", "origins"),
    [
        ({}, ()),
        *(
            ({"host": host}, ())
            for host in ("localhost:8080", "127.8.8.8", "[::1]:80", "LOCALHOST")
        ),
        ({"origin": "http://127.0.0.1:8080"}, ()),
        ({"origin": "https://localhost", "host": "localhost"}, ()),
        (ORIGIN, (PAGE,)),
        ({"origin": "null"}, ("*",)),
    ],
)
async def test_clients_and_pages_of_this_machine_come_in(
    tmp_path: Path, headers: dict[str, str], origins: tuple[str, ...]
) -> None:
    async with local(tmp_path, headers, cors=CorsConfig(origins=origins)) as client:
        answer = await client.post("/predict", json={"prompt": "x", "model": "a"})
        assert answer.status_code == 200, answer.text


async def test_where_a_credential_is_required_or_none_is_on_purpose_any_name_comes_in(
    tmp_path: Path,
) -> None:
    """A proxy may pass on the name by which it was called."""
    named = {"host": "models.example"} | ORIGIN
    for auth, status in ((AuthConfig(none=True), 200), (AuthConfig(bearer=True), 401)):
        async with local(tmp_path, named, auth=auth) as client:
            answer = await client.post("/predict", json={"prompt": "x", "model": "a"})
            assert answer.status_code == status, answer.text
