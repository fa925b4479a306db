"""Logs and usage of real servers: a line for each request, objects, a deployment's own files."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.contract.world import World
from tests.servers import Signed
from tests.serving import Server
from tests.waiting import until

pytestmark = pytest.mark.engine

COMPLETIONS = "/v1/completions"


def test_every_line_is_an_object_with_the_requests_fields(
    server: Server, http: httpx.Client
) -> None:
    forged = 'a"\r\n{"forged": 1}'
    path = "/models/" + "".join(f"%{byte:02X}" for byte in forged.encode()) + "/predict"
    refused = http.post(path, json={"prompt": "x"})
    body = {"prompt": "x", "max_tokens": 3, "model": "a", "ignore_eos": True}
    id = http.post(COMPLETIONS, json=body).headers["opc-request-id"]
    until(lambda: id in server.printed())
    # What it says before it has read its settings is for people.
    lines = [json.loads(line) for line in server.printed().splitlines() if line[:1] == "{"]
    assert not any("forged" in line for line in lines)
    by_id = {line["id"]: line for line in lines if line["logger"] == "stacked.access"}
    asked = by_id[refused.headers["opc-request-id"]]
    assert (asked["status"], asked["path"]) == (404, f"/models/{forged}/predict")
    line = by_id[id]
    assert line["credential"] == "anyone"
    assert (line["path"], line["status"], line["ended"]) == (COMPLETIONS, 200, "whole")
    assert (line["key"], line["generated_tokens"]) == ("a", 3)
    assert line["prompt_tokens"] > 0
    assert line["digest"].startswith("sha256:")
    assert 0 < line["first"] <= line["seconds"]
    vllm = [line for line in lines if line["logger"].startswith("vllm.")]
    assert {"process" in line for line in vllm} == {True, False}, "of the engine's, and of ours"
    stored = server.directory / "data" / "logs" / "access.log"
    assert [line for line in stored.read_text().splitlines() if json.loads(line)["id"] == id]


def test_usage_has_the_requests_and_tokens_of_each_key(server: Server, http: httpx.Client) -> None:
    def used() -> dict[str, int]:
        items = http.get("/stacked/usage", params={"by": "key"}).json()["items"]
        return next((each for each in items if each["key"] == "b"), {})

    before = used()
    body = {"prompt": "x", "max_tokens": 3, "model": "b", "ignore_eos": True, "stream": True}
    for _ in range(2):
        http.post(COMPLETIONS, json=body)
    http.post(COMPLETIONS, json=body | {"temperature": -1})
    grown = {name: used()[name] - before.get(name, 0) for name in ("requests", "errors")}
    assert grown == {"requests": 3, "errors": 1}
    assert used()["generatedTokens"] - before.get("generatedTokens", 0) == 6


def test_logs_of_a_deployment_are_files_of_their_ids(world: World, signed: Signed) -> None:
    """The ids are those of `seed_deployment`, which `world.deployment` is made of."""
    id = world.deployment()
    paths = world.raw("GET", "/stacked/status").json()["logs"]
    logs = signed.server.directory / "data" / "logs"
    access, predict = (logs / name / "ocid1.log.oc1.iad.l.log" for name in ("access", "predict"))
    assert (paths["access"], paths["predict"]) == (str(access), str(predict))
    body = {"model": "a", "prompt": "zqsecret", "max_tokens": 4, "temperature": 0}
    answer = world.inference.predict(id, body)
    said = f"id={answer.headers['opc-request-id']} "
    until(lambda: said in access.read_text())
    (line,) = [each for each in access.read_text().splitlines() if said in each]
    assert "status=200" in line
    assert "key=a" in line
    assert "Starting to load model" in predict.read_text(), "it is there from its start on"
    assert "zqsecret" not in access.read_text() + predict.read_text()
