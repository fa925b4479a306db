"""A whole server that asks for signatures: who gets an answer, and what the commands sign."""

from __future__ import annotations

from pathlib import Path

import httpx
import oci
import pytest
import yaml

from stacked.keys import create_signing, remove
from tests.api.doors import signer
from tests.conftest import PROMPT, TinyModels
from tests.contract.world import World
from tests.servers import Signed
from tests.test_cli import run
from tests.tiny import build_adapter
from tests.waiting import until

pytestmark = pytest.mark.engine


def test_the_server_says_whom_it_serves(signed: Signed) -> None:
    assert "bearer tokens or OCI signatures, 1 key in" in " ".join(signed.server.printed().split())


def test_inference_is_for_those_who_sign(world: World) -> None:
    world.deployment()
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    for path in ("/predict", "/v1/completions"):
        assert httpx.post(world.url + path, json=body).status_code == 401
        answer = world.raw("POST", path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["model-key"] == "a"
        assert answer.json()["choices"][0]["text"]
    stream = world.raw("POST", "/predict", json={**body, "stream": True}, stream=True)
    assert stream.text.rstrip().endswith("data: [DONE]")
    assert httpx.get(f"{world.url}/v1/models").status_code == 401
    assert httpx.get(f"{world.url}/health").json()["status"] == "serving"


def test_the_commands_sign_with_the_file_they_are_given(world: World, signed: Signed) -> None:
    world.deployment()
    refused = run("models", "--url", world.url, STACKED_OCI_CONFIG="")
    assert refused.returncode == 1
    assert "NotAuthenticated" in refused.stderr
    shown = run("models", "--url", world.url, STACKED_OCI_CONFIG=str(signed.config_file))
    assert shown.returncode == 0, shown.stderr
    assert "base" in shown.stdout


def test_a_key_comes_and_goes_while_the_server_runs(world: World, signed: Signed) -> None:
    data = signed.server.directory / "data"
    made = create_signing(data, "bob")
    bob = signer(oci.config.from_file(str(made.sdk_config)))

    def status() -> int:
        return world.raw("GET", "/20190101/models?limit=1", auth=bob).status_code

    until(lambda: status() == 200)
    remove(data, "bob")
    until(lambda: status() == 401)


def test_an_update_signs_what_it_sends(
    world: World, signed: Signed, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """An adapter from outside of the directories that the server may read."""
    world.deployment()
    source = build_adapter(tmp_path / "mine", tiny_models.base, 88)
    tree = {
        "base": {"model": "any"},
        "group": {"name": "signed", "members": [{"key": "mine", "source": str(source)}]},
    }
    file = tmp_path / "next.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = ("update", "--live", str(file), "--url", world.url)
    refused = run(*arguments, cwd=tmp_path, STACKED_OCI_CONFIG="")
    assert (refused.returncode, "NotAuthenticated" in refused.stderr) == (1, True)
    done = run(*arguments, cwd=tmp_path, STACKED_OCI_CONFIG=str(signed.config_file))
    assert done.returncode == 0, done.stderr
    assert "Sending mine, " in done.stderr
    assert "Group 'signed' is live" in done.stderr
