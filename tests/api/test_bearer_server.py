"""A whole server that takes tokens: real clients with their own headers, and what each reaches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import yaml

from stacked.client import Client
from stacked.keys import Rights, create, keys_dir, remove, rotate
from tests.api.certificates import Authority
from tests.conftest import PROMPT, complete
from tests.contract.world import World
from tests.servers import Signed
from tests.serving import free_port, serving
from tests.test_cli import run
from tests.waiting import until

pytestmark = pytest.mark.engine

SAID: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}


@pytest.fixture
def data_dir(world: World, signed: Signed) -> Iterator[Path]:
    """Where the server looks for credentials; those that a test makes do not outlive it."""
    world.deployment()
    directory = signed.server.directory / "data"
    before = set(keys_dir(directory).iterdir())
    yield directory
    for path in set(keys_dir(directory).iterdir()) - before:
        remove(directory, path.stem)


def client(world: World, token: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=world.url, headers=headers, timeout=120)


def test_openais_client_comes_in_with_its_api_key(world: World, data_dir: Path) -> None:
    token = create(data_dir, "app", Rights(keys=frozenset({"a"})))
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=token, max_retries=0) as one:
        assert [model.id for model in one.models.list()] == ["a"]
        assert one.completions.create(model="a", **SAID).choices[0].text
        parts = one.completions.create(model="a", stream=True, **SAID)
        assert sum(bool(part.choices) for part in parts) > 1
        for name in ("b", "never"):
            with pytest.raises(openai.NotFoundError):
                one.completions.create(model=name, **SAID)
        remove(data_dir, "app")
        with pytest.raises(openai.AuthenticationError, match="not valid here"):
            one.completions.create(model="a", **SAID)
        stranger = one.with_options(api_key="none")
        with pytest.raises(openai.AuthenticationError, match="stacked keys create"):
            stranger.models.list()


@pytest.mark.parametrize("way", ["api_key", "auth_token"])
def test_anthropics_client_comes_in_by_either_header(
    world: World, data_dir: Path, way: str
) -> None:
    token = create(data_dir, "app")
    options: dict[str, Any] = {way: token}
    message: dict[str, Any] = {"role": "user", "content": PROMPT}
    with anthropic.Anthropic(base_url=world.url, max_retries=0, **options) as one:
        answer = one.messages.create(model="a", max_tokens=4, messages=[message])  # type: ignore[call-overload]
        assert answer.usage.output_tokens == 4
        rotate(data_dir, "app")
        with pytest.raises(anthropic.AuthenticationError):
            one.messages.create(model="a", max_tokens=4, messages=[message])  # type: ignore[call-overload]


def test_a_token_in_any_header_is_the_same_caller(world: World, data_dir: Path) -> None:
    token, other = create(data_dir, "app"), create(data_dir, "other")
    ways = [
        {"authorization": f"Bearer {token}"},
        {"Authorization": f"bearer  {token}"},
        {"api-key": token},
        {"x-api-key": token},
        {"authorization": f"Bearer {token}", "api-key": token},
    ]
    for headers in ways:
        answer = httpx.post(f"{world.url}/predict", headers=headers, json=SAID, timeout=120)
        assert answer.status_code == 200, headers
    twice = {"authorization": f"Bearer {token}", "api-key": other}
    for headers, words in (
        (twice, "more than one credential"),
        ({"authorization": 'Signature version="1"', "x-api-key": token}, "more than one"),
        ({"authorization": "Basic YTpi"}, "scheme"),
        ({}, "no credential"),
    ):
        answer = httpx.post(f"{world.url}/predict", headers=headers, json=SAID)
        assert (answer.status_code, words in answer.text) == (401, True), answer.text
        assert answer.headers["www-authenticate"] == 'Bearer, Signature version="1"'


def test_a_serving_credential_reaches_no_administration(world: World, data_dir: Path) -> None:
    serving_, admin = create(data_dir, "app"), create(data_dir, "ops", Rights(admin=True))
    body = {"lora_name": "x", "lora_path": "/x"}
    with client(world, serving_) as app, client(world, admin) as ops:
        assert complete(app, "a") == complete(ops, "a") != complete(app, "b")
        for method, path in (
            ("GET", "/20190101/models"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/models/x"),
            ("DELETE", "/models/a"),
            ("GET", "/stacked/status"),
            ("POST", "/inference/v1/abort_requests"),
        ):
            answer = app.request(method, path, json=body if method == "POST" else None)
            assert (answer.status_code, "NotA" in answer.text) == (403, True), answer.text
        assert ops.get("/20190101/models").status_code == 200
        assert ops.get("/stacked/status").status_code == 200
        assert app.get("/metrics").status_code == 200


def test_the_commands_send_the_token_they_are_given(world: World, data_dir: Path) -> None:
    token = create(data_dir, "app", Rights(keys=frozenset({"b"})))
    shown = run("models", "--url", world.url, STACKED_API_KEY=token, STACKED_OCI_CONFIG="")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[0] != "a"
    said = run(
        *("predict", "--key", "b", "--url", world.url, PROMPT),
        STACKED_API_KEY=token,
        STACKED_OCI_CONFIG="",
    )
    assert said.returncode == 0, said.stderr
    refused = run("status", "--url", world.url, STACKED_API_KEY=token, STACKED_OCI_CONFIG="")
    assert (refused.returncode, "inference alone" in refused.stderr) == (1, True)


# -- TLS and the metrics' own listener ------------------------------------------------------


def test_https_on_every_port_and_metrics_on_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.of(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    cert, key = authority.issue(tmp_path, "server")
    command = [sys.executable, "-m", "stacked", "keys", "create", "ops", "--admin"]
    made = subprocess.run(
        [*command, "--data-dir", "data"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    token = made.stdout.strip()
    port, health, metrics = free_port(), free_port(), free_port()
    server = {
        "port": port,
        "health_port": health,
        "auth": {"bearer": True},
        "tls": {"cert": cert.name, "key": key.name},
        "metrics": {"port": metrics},
    }
    path = tmp_path / "control.yaml"
    path.write_text(yaml.safe_dump({"server": server}), encoding="utf-8")
    options: dict[str, Any] = {"directory": tmp_path, "port": port, "scheme": "https"}
    with serving(str(path), "--data-dir", "data", status=503, **options) as running:
        until(lambda: f"https://127.0.0.1:{port}" in running.printed())
        monkeypatch.setenv("STACKED_API_KEY", token)
        with Client(running.url) as ours:
            assert ours.groups() == []
        with httpx.Client() as one:
            for at in (port, health):
                # Nothing is deployed: the process is there, and serves nothing.
                assert one.get(f"https://127.0.0.1:{at}/health").status_code == 503
                assert one.get(f"https://127.0.0.1:{at}/metrics").status_code == 401
            own = f"https://127.0.0.1:{metrics}"
            assert one.get(f"{own}/metrics").status_code == 200
            for path_ in ("/health", "/v1/models", "/stacked/status", "/metrics/x"):
                assert one.get(own + path_).status_code == 404
            assert one.post(f"{own}/metrics").status_code == 404
