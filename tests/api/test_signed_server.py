"""A whole server that asks for signatures: who gets an answer, and calls that are made twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import oci
import pytest
import requests
import yaml

from stacked.keys import create, remove
from tests.api.doors import sdk_config, signer
from tests.conftest import PROMPT, TinyModels
from tests.serving import Server, free_port, serving
from tests.test_cli import run
from tests.waiting import until

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signed")


@pytest.fixture(scope="module")
def alice(directory: Path) -> dict[str, Any]:
    return sdk_config(directory / "data")


@pytest.fixture(scope="module")
def server(directory: Path, alice: dict[str, Any], tiny_models: TinyModels) -> Iterator[Server]:
    port = free_port()
    tree = {
        "base": {"model": str(tiny_models.base)},
        "group": {"members": [{"key": "a", "source": str(tiny_models.adapters["a"])}]},
        "engine": {"max_model_len": 256},
        "server": {"port": port, "auth": {"oci": True}},
    }
    path = directory / "signed.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with serving(str(path), "--data-dir", "data", directory=directory, port=port) as server:
        yield server


def client_of(config: dict[str, Any], server: Server) -> Any:
    return oci.data_science.DataScienceClient(config, service_endpoint=f"{server.url}/")


def test_the_server_says_whom_it_serves(server: Server) -> None:
    assert "OCI signatures, 1 key in" in " ".join(server.printed().split())


def test_inference_is_for_those_who_sign(server: Server, alice: dict[str, Any]) -> None:
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    for path in ("/predict", "/v1/completions"):
        assert httpx.post(server.url + path, json=body).status_code == 401
        answer = requests.post(server.url + path, json=body, auth=signer(alice), timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.headers["model-key"] == "a"
        assert answer.json()["choices"][0]["text"]
    stream = requests.post(
        f"{server.url}/predict",
        json={**body, "stream": True},
        auth=signer(alice),
        stream=True,
        timeout=60,
    )
    assert stream.text.rstrip().endswith("data: [DONE]")
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/health").json()["status"] == "serving"


def test_a_group_is_made_once_for_a_retry_token(server: Server, alice: dict[str, Any]) -> None:
    client = client_of(alice, server)
    models = client.list_models("ocid1.compartment.oc1..c").data
    ids = {model.display_name: model.id for model in models}
    base = next(id for name, id in ids.items() if name != "a")
    entries = [
        {"modelId": id, "inferenceKey": "base" if id == base else "again"} for id in ids.values()
    ]
    wanted = {
        "createType": "CREATE",
        "compartmentId": "ocid1.compartment.oc1..c",
        "projectId": "ocid1.datascienceproject.oc1..p",
        "displayName": "once",
        "modelGroupDetails": {"type": "STACKED", "baseModelId": base},
        "memberModelEntries": {"memberModelDetails": entries},
    }
    made = [client.create_model_group(wanted, opc_retry_token="t1") for _ in range(2)]
    assert made[0].data.id == made[1].data.id
    assert made[0].headers["etag"] == made[1].headers["etag"]
    assert made[0].request_id != made[1].request_id
    with pytest.raises(oci.exceptions.ServiceError) as error:
        client.create_model_group({**wanted, "displayName": "other"}, opc_retry_token="t1")
    assert (error.value.status, error.value.code) == (409, "InvalidatedRetryToken")
    listed = client.list_model_groups("ocid1.compartment.oc1..c", display_name="once").data
    assert len(listed) == 1


def test_the_commands_sign_with_the_file_they_are_given(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "stacked", "models", "--url", server.url]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "NotAuthenticated" in refused.stderr
    file = directory / "data" / "clients" / "alice" / "config"
    monkeypatch.setenv("STACKED_OCI_CONFIG", str(file))
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "base" in shown.stdout


def test_a_key_comes_and_goes_while_the_server_runs(server: Server, directory: Path) -> None:
    made = create(directory / "data", "bob")
    bob = signer(oci.config.from_file(str(made.sdk_config)))

    def status() -> int:
        return requests.get(f"{server.url}/v1/models", auth=bob, timeout=60).status_code

    until(lambda: status() == 200)
    remove(directory / "data", "bob")
    until(lambda: status() == 401)


def test_an_update_signs_what_it_sends_to_a_server_that_reads_no_directory(
    server: Server, directory: Path, tiny_models: TinyModels, tmp_path: Path
) -> None:
    tree = {
        "base": {"model": "any"},
        "group": {
            "name": "signed",
            "members": [{"key": "b", "source": str(tiny_models.adapters["b"])}],
        },
    }
    file = tmp_path / "next.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = ("update", "--live", str(file), "--url", server.url)
    refused = run(*arguments, cwd=tmp_path, STACKED_OCI_CONFIG="")
    assert (refused.returncode, "NotAuthenticated" in refused.stderr) == (1, True)
    key = create(directory / "data", "carol").sdk_config
    done = run(*arguments, cwd=tmp_path, STACKED_OCI_CONFIG=str(key))
    assert done.returncode == 0, done.stderr
    assert "Sending b, " in done.stderr
    assert "Group 'signed' is live" in done.stderr
