"""Loading and removing adapters over HTTP: the container's verbs and vLLM's own two endpoints."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PROMPT, TinyModels, complete

pytestmark = pytest.mark.engine


def generation(client: httpx.Client) -> int:
    return int(client.get("/health").json()["generation"])


def load(client: httpx.Client, name: str, source: Path | str) -> httpx.Response:
    return client.post(f"/models/{name}", json={"source": str(source)})


def test_adapter_is_loaded_served_and_removed(
    http: httpx.Client, tiny_models: TinyModels, answers: dict[str, str]
) -> None:
    before = generation(http)
    loaded = load(http, "fresh", tiny_models.adapters["spare"])
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["key"] == "fresh"
    assert http.get("/models/fresh/health").json()["status"] == "healthy"
    text = complete(http, "fresh")
    assert text not in answers.values()
    assert complete(http, loaded.json()["modelId"]) == text
    assert http.delete("/models/fresh").json() == {"status": "removed"}
    gone = http.get("/models/fresh/health")
    assert gone.status_code == 404
    assert gone.json()["code"] == "KeyUnknown"
    assert generation(http) == before + 2


def test_loading_twice_is_loading_once_and_other_content_is_refused(
    http: httpx.Client, tiny_models: TinyModels
) -> None:
    first = load(http, "twice", tiny_models.adapters["spare"])
    again = load(http, "twice", tiny_models.adapters["spare"])
    assert again.json() == first.json()
    other = load(http, "twice", tiny_models.adapters["unkeyed"])
    assert other.status_code == 409
    assert other.json()["code"] == "KeyInUse"
    assert load(http, "base", tiny_models.adapters["spare"]).status_code == 409
    assert http.delete("/models/twice").status_code == 200
    assert http.delete("/models/twice").status_code == 404


def test_same_content_under_two_keys_stays_until_the_last_is_removed(
    http: httpx.Client, tiny_models: TinyModels
) -> None:
    load(http, "one", tiny_models.adapters["spare"])
    load(http, "two", tiny_models.adapters["spare"])
    text = complete(http, "one")
    http.delete("/models/one")
    assert complete(http, "two") == text
    http.delete("/models/two")


def test_name_alone_finds_the_adapter_under_the_roots(http: httpx.Client) -> None:
    response = http.post("/model/spare")
    assert response.status_code == 200, response.text
    assert http.delete("/model/spare").status_code == 200
    missing = http.post("/models/missing")
    assert missing.status_code == 404
    assert missing.json()["code"] == "SourceNotFound"


def test_member_that_was_removed_is_told_and_comes_back_by_its_id(
    http: httpx.Client, answers: dict[str, str]
) -> None:
    """As a platform drives a LIVE update of a container: DELETE, then POST, by model id."""
    deployment = http.get("/stacked/status").json()["deploymentId"]
    states = f"/20190101/modelDeployments/{deployment}/models/modelState"

    def shown() -> dict[str, str]:
        return {row["modelId"]: row["state"] for row in http.get(states).json()}

    id = next(row["modelId"] for row in http.get(states).json() if row["inferenceKey"] == "c")
    assert set(shown().values()) == {"SUCCESS"}
    assert http.delete(f"/models/{id}").status_code == 200
    assert {one for one, state in shown().items() if state == "FAILED"} == {id}
    loaded = http.post(f"/models/{id}")
    assert (loaded.status_code, loaded.json()["key"]) == (200, "c")
    assert complete(http, "c") == answers["c"]
    assert set(shown().values()) == {"SUCCESS"}


def test_model_id_may_be_chosen_and_has_one_content(
    http: httpx.Client, tiny_models: TinyModels
) -> None:
    name = "ocid1.datasciencemodel.oc1..chosen"
    body = {"source": str(tiny_models.adapters["spare"]), "key": "chosen"}
    assert http.post(f"/models/{name}", json=body).json()["modelId"] == name
    assert complete(http, "chosen") == complete(http, name)
    body = {"source": str(tiny_models.adapters["unkeyed"]), "key": "chosen-2"}
    assert http.post(f"/models/{name}", json=body).status_code == 409
    assert http.delete(f"/models/{name}").status_code == 200


def test_vllm_shape_of_loading_and_unloading_is_kept(
    http: httpx.Client, tiny_models: TinyModels
) -> None:
    body: dict[str, Any] = {"lora_name": "v", "lora_path": str(tiny_models.adapters["spare"])}
    loaded = http.post("/v1/load_lora_adapter", json=body)
    assert loaded.text == "Success: LoRA adapter 'v' added successfully."
    assert "v" in [row["id"] for row in http.get("/v1/models").json()["data"]]
    inplace = http.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
    assert inplace.status_code == 400
    unloaded = http.post("/v1/unload_lora_adapter", json={"lora_name": "v"})
    assert unloaded.text == "Success: LoRA adapter 'v' removed successfully."
    again = http.post("/v1/unload_lora_adapter", json={"lora_name": "v"})
    assert again.status_code == 404
    assert again.json()["error"]["code"] == "KeyUnknown"
    for wrong in ({}, {"lora_name": "v"}, {"lora_name": 1, "lora_path": "x"}):
        assert http.post("/v1/load_lora_adapter", json=wrong).status_code == 400


def broken(directory: Path, good: Path, how: str) -> Path:
    """A copy of a good adapter, broken in one way."""
    shutil.copytree(good, directory)
    config = directory / "adapter_config.json"
    tree = json.loads(config.read_text())
    weights = directory / "adapter_model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle only":
        weights.rename(directory / "adapter_model.bin")
    elif how == "bad JSON":
        config.write_text("{")
    elif how == "DoRA":
        config.write_text(json.dumps(tree | {"use_dora": True}))
    elif how == "rank too large":
        config.write_text(json.dumps(tree | {"r": 512}))
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    return directory


BROKEN = {
    "no config": "FileMissing",
    "no weights": "FileMissing",
    "pickle only": "PickleRefused",
    "bad JSON": "AdapterConfigInvalid",
    "DoRA": "AdapterUnsupported",
    "rank too large": "RankRefused",
    "cut short": "WeightsInvalid",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_adapter_is_refused_by_name_and_nothing_changes(
    http: httpx.Client, tiny_models: TinyModels, answers: dict[str, str], how: str
) -> None:
    before = generation(http)
    place = tiny_models.base.parent / f"broken-{how.replace(' ', '-')}"
    source = broken(place, tiny_models.adapters["spare"], how)
    response = load(http, "broken", source)
    assert response.status_code == 400, response.text
    assert response.json()["code"] == BROKEN[how]
    assert generation(http) == before
    assert complete(http, "a") == answers["a"]


def test_fifty_bad_loads_under_traffic_fail_alone(
    http: httpx.Client, tiny_models: TinyModels, answers: dict[str, str], tmp_path: Path
) -> None:
    place = tiny_models.base.parent / "broken-fifty"
    source = broken(place, tiny_models.adapters["spare"], "cut short")
    stop, texts = threading.Event(), list[str]()

    def traffic() -> None:
        while not stop.is_set():
            texts.append(complete(http, "b"))

    thread = threading.Thread(target=traffic)
    thread.start()
    codes = {load(http, f"bad{at}", source).json()["code"] for at in range(50)}
    stop.set()
    thread.join()
    assert codes == {"WeightsInvalid"}
    assert texts
    assert set(texts) == {answers["b"]}
    good = load(http, "good", tiny_models.adapters["spare"])
    assert good.status_code == 200
    assert http.delete("/models/good").status_code == 200


@pytest.mark.parametrize(
    "source",
    ["/etc", "../..", "http://127.0.0.1:1/x.zip", "org/name", "/x\0y", "~nobody-of-that-name/x"],
)
def test_sources_outside_the_roots_and_remote_ones_are_refused(
    http: httpx.Client, source: str
) -> None:
    response = load(http, "x", source)
    assert response.status_code in (403, 404)
    assert response.json()["code"] in ("SourceRefused", "SourceNotFound")


@pytest.mark.parametrize("name", ["k" * 33, "a%2520b", "a%09b", "a%2F%2Fb", "%20a"])
def test_keys_that_cannot_be_are_refused(
    http: httpx.Client, tiny_models: TinyModels, name: str
) -> None:
    response = load(http, name, tiny_models.adapters["spare"])
    assert response.status_code == 400
    assert response.json()["code"] in ("KeyTooLong", "KeyInvalid")


def test_base_cannot_be_removed(http: httpx.Client) -> None:
    response = http.delete("/models/base")
    assert response.status_code == 409
    assert response.json()["code"] == "KeyInUse"


def test_stream_that_began_before_the_removal_ends_as_if_nothing_had_happened(
    http: httpx.Client, tiny_models: TinyModels
) -> None:
    load(http, "leaving", tiny_models.adapters["spare"])
    body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "model": "leaving"}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    text, removed = "", []

    def remove() -> None:
        removed.append(http.delete("/models/leaving"))

    thread = threading.Thread(target=remove)
    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if not line or line == "data: [DONE]":
                continue
            text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            if thread.ident is None:
                thread.start()
                deadline = time.monotonic() + 10
                while http.get("/models/leaving/health").status_code == 200:
                    assert time.monotonic() < deadline
                # The key is refused from now on, while this stream still runs.
                refused = http.post("/predict", json=body)
                assert refused.status_code in (404, 409)
    thread.join()
    assert text == whole
    assert removed[0].json() == {"status": "removed"}
    assert http.get("/models/leaving/health").json()["code"] == "KeyUnknown"


def whole(client: httpx.Client, body: dict[str, Any]) -> None:
    client.post("/v1/completions", json=body)


def abandoned(client: httpx.Client, body: dict[str, Any]) -> None:
    """Read the first bytes of a stream and leave."""
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        next(response.iter_bytes())


def impatient(client: httpx.Client, body: dict[str, Any]) -> None:
    """Leave before the answer comes."""
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=body | {"max_tokens": 200}, timeout=0.05)


WAYS_OUT: dict[str, tuple[Any, dict[str, Any]]] = {
    "finished": (whole, {}),
    "stop string": (whole, {"stop": ["e", "a", "o"]}),
    "four choices": (whole, {"n": 4, "temperature": 0.9}),
    "no tokens": (whole, {"max_tokens": 0, "echo": True}),
    "invalid grammar": (whole, {"structured_outputs": {"regex": "("}}),
    "too long a prompt": (whole, {"prompt": "x " * 2000}),
    "wrong type": (whole, {"max_tokens": "x"}),
    "unknown parameter": (whole, {"max_token": 1}),
    "client gone in the stream": (abandoned, {"max_tokens": 200}),
    "client gone with four choices": (abandoned, {"max_tokens": 200, "n": 4}),
    "client gone before the answer": (impatient, {}),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_lease_is_released_on_every_way_out_so_that_removal_is_prompt(
    http: httpx.Client, tiny_models: TinyModels, way: str
) -> None:
    request, more = WAYS_OUT[way]
    load(http, "way-out", tiny_models.adapters["spare"])
    request(http, {"prompt": PROMPT, "max_tokens": 8, "model": "way-out"} | more)
    # The drain time of this server is 20 s: a lease that leaks answers "draining" after that.
    assert http.delete("/models/way-out").json() == {"status": "removed"}
