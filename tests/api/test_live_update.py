"""LIVE updates on the real engine: under traffic, refused ones, and what a killed server leaves."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stacked.steps import Phase
from tests import tiny
from tests.conftest import PROMPT, TinyModels, complete
from tests.live import faults
from tests.serving import Server
from tests.test_cli import run
from tests.tiny import build_adapter

pytestmark = pytest.mark.engine

API = "/20190101"


@pytest.fixture(scope="module")
def live(server: Server) -> Iterator[Server]:
    """The session's server, which gets its own group back."""
    with server.client() as client:
        group_id = status(client)["groupId"]
        yield server
        assert follow(client, update(client, group_id))["status"] == "SUCCEEDED"


def ok(response: httpx.Response) -> Any:
    assert response.status_code < 300, response.text
    return response.json() if response.content else None


def status(client: httpx.Client) -> dict[str, Any]:
    tree = ok(client.get("/stacked/status"))
    assert isinstance(tree, dict)
    return tree


def register(client: httpx.Client, source: Path) -> str:
    body = {
        "compartmentId": "c",
        "projectId": "p",
        "displayName": source.name,
        "customMetadataList": [{"key": "source", "value": str(source)}],
    }
    return str(ok(client.post(f"{API}/models", json=body))["id"])


def create_group(
    client: httpx.Client, members: dict[str, str], metadata: Mapping[str, str] | None = None
) -> str:
    """A group of the served base and these members: key -> model id."""
    served = ok(client.get("/v1/models"))["data"][0]
    body = {
        "createType": "CREATE",
        "compartmentId": "c",
        "projectId": "p",
        "displayName": "next",
        "modelGroupDetails": {
            "type": "STACKED",
            "baseModelId": served["model_id"],
            "customMetadataList": [
                {"key": key, "value": value} for key, value in (metadata or {}).items()
            ],
        },
        "memberModelEntries": {
            "memberModelDetails": [
                {"modelId": served["model_id"], "inferenceKey": "base"},
                *({"modelId": model, "inferenceKey": key} for key, model in members.items()),
            ]
        },
    }
    return str(ok(client.post(f"{API}/modelGroups", json=body))["id"])


def asked_live(client: httpx.Client, group_id: str) -> httpx.Response:
    """The answer to the wish for a LIVE update to this group."""
    deployment = status(client)["deploymentId"]
    body = {
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            "updateType": "LIVE",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
        }
    }
    return client.put(f"{API}/modelDeployments/{deployment}", json=body)


def update(client: httpx.Client, group_id: str) -> str:
    """Start a LIVE update; the id of its work request."""
    response = asked_live(client, group_id)
    assert response.status_code == 202, response.text
    return response.headers["opc-work-request-id"]


def follow(client: httpx.Client, work_id: str) -> dict[str, Any]:
    """The work request when it is over; its percentage must only grow."""
    percent, deadline = -1.0, time.monotonic() + 120
    while time.monotonic() < deadline:
        work = ok(client.get(f"{API}/workRequests/{work_id}"))
        assert work["percentComplete"] >= percent
        percent = work["percentComplete"]
        if work["status"] in ("SUCCEEDED", "FAILED"):
            assert isinstance(work, dict)
            return work
        time.sleep(0.02)
    raise AssertionError(f"the update did not end: {work}")


def swap(
    client: httpx.Client, members: dict[str, str], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    return follow(client, update(client, create_group(client, members, metadata)))


@pytest.fixture(scope="module")
def ids(live: Server, tiny_models: TinyModels) -> dict[str, str]:
    """Adapter name -> model id, all of them registered."""
    with live.client() as client:
        return {name: register(client, path) for name, path in tiny_models.adapters.items()}


@pytest.fixture(scope="module")
def texts(live: Server, ids: dict[str, str]) -> dict[str, str]:
    """What each adapter answers, each loaded alone beside the group: adapter name -> text."""
    with live.client() as client:
        found = {}
        for name, model_id in ids.items():
            swap(client, {"only": model_id})
            found[name] = complete(client, "only")
        found["base"] = complete(client, "base")
    assert len(set(found.values())) == len(found)
    return found


@pytest.mark.oldest
def test_group_is_replaced_renamed_and_rolled_back(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    with live.client() as client:
        assert swap(client, {"x": ids["a"], "y": ids["b"]})["status"] == "SUCCEEDED"
        before = status(client)
        work = swap(client, {"x": ids["c"], "z": ids["b"]})
        assert work["status"] == "SUCCEEDED"
        assert work["percentComplete"] == 100
        after = status(client)
        assert after["generation"] == before["generation"] + 1
        assert after["previousGroupId"] == before["groupId"]
        assert complete(client, "x") == texts["c"]
        assert complete(client, "z") == texts["b"]
        assert client.get("/models/y/health").json()["code"] == "KeyUnknown"
        assert complete(client, "base") == texts["base"]
        work = follow(client, update(client, after["previousGroupId"]))
        assert work["status"] == "SUCCEEDED"
        assert complete(client, "x") == texts["a"]
        assert complete(client, "y") == texts["b"]
        states = ok(
            client.get(
                f"{API}/modelDeployments/{after['deploymentId']}/models/modelState",
                params={"compartmentId": "c"},
            )
        )
        assert {row["state"] for row in states} == {"SUCCESS"}
        logs = ok(client.get(f"{API}/workRequests/{work['id']}/logs"))
        assert Phase.SWITCH.name in {row.get("step") for row in logs}


def test_an_update_that_changes_a_template_alone_changes_the_prompts(
    live: Server, ids: dict[str, str], tiny_models: TinyModels
) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    folder = tiny_models.base.parent / "live-template"
    shutil.copytree(tiny_models.adapters["a"], folder)

    def prompt(client: httpx.Client, key: str) -> list[int]:
        body = {"model": key, "messages": messages}
        return list(ok(client.post("/tokenize", json=body))["tokens"])

    def judged(directory: Path) -> list[int]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory)
        return list(tokenizer.apply_chat_template(messages, return_dict=False))

    with live.client() as client:
        base = prompt(client, "base")
        for template in ("one {{ messages[0].content }}", "two {{ messages[0].content }}"):
            tiny.save_tokenizer(folder, tiny_models.base, template)
            model = register(client, folder)
            assert model != ids["a"]
            assert swap(client, {"x": model, "y": ids["a"]})["status"] == "SUCCEEDED"
            assert prompt(client, "x") == judged(folder)
            assert prompt(client, "y") == prompt(client, "base") == base
            assert complete(client, "x") == complete(client, "y")  # the same weights
        assert swap(client, {"x": ids["a"]})["status"] == "SUCCEEDED"
        assert prompt(client, "x") == base


@pytest.mark.oldest
def test_no_response_is_lost_or_mixed_under_a_storm_of_updates(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    """Every response is one adapter's whole answer, of a version live between admission and end."""
    groups = [
        {"x": ids["a"], "y": ids["b"]},
        {"x": ids["b"], "y": ids["a"], "z": ids["c"]},
        {"x": ids["spare"], "w": ids["a"]},
        {"x": ids["unkeyed"], "y": ids["b"]},
    ]
    names = {model: name for name, model in ids.items()}
    # What a key meant, as (from, until, adapter); an update is live somewhere within its own span.
    history: list[tuple[float, float, dict[str, str]]] = []
    stop = threading.Event()
    problems: list[str] = []
    counts = {"whole": 0, "aborted": 0}

    def check(key: str, began: float, text: str) -> None:
        ended = time.monotonic()
        allowed = {
            texts[names[members[key]]] if key != "base" else texts["base"]
            for start, until, members in list(history)
            if start <= ended and until >= began and (key in members or key == "base")
        }
        if text not in allowed:
            problems.append(f"{key}: {text!r} is of no version that was live")
        counts["whole"] += 1

    def ask(number: int) -> None:
        keys = ["x", "base", "x", "y"]
        with live.client() as client:
            at = number
            while not stop.is_set():
                at += 1
                one_request(client, keys[at % 4], at)

    def one_request(client: httpx.Client, key: str, at: int) -> None:
        body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "model": key}
        began = time.monotonic()
        if at % 3 == 0:
            with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
                if response.status_code != 200:
                    response.read()
                    refused(key, response)
                    return
                text = ""
                for line in response.iter_lines():
                    if at % 9 == 0 and text:
                        counts["aborted"] += 1
                        return
                    if line.startswith("data: {"):
                        text += json.loads(line[6:])["choices"][0]["text"]
        else:
            response = client.post("/v1/completions", json=body)
            if response.status_code != 200:
                refused(key, response)
                return
            text = response.json()["choices"][0]["text"]
        check(key, began, text)

    def refused(key: str, response: httpx.Response) -> None:
        # `y` is in three of the four groups: without it, it is unknown or draining, never wrong.
        code = response.json()["error"]["code"]
        if key != "y" or code not in ("KeyUnknown", "KeyRemoved"):
            problems.append(f"{key}: {response.text}")

    with live.client() as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        swap(client, groups[0])
        history.append((0.0, float("inf"), groups[0]))
        clients = [pool.submit(ask, number) for number in range(12)]
        for at in range(1, 13):
            wanted = groups[at % 4]
            group_id = create_group(client, wanted)
            started = time.monotonic()
            history.append((started, float("inf"), wanted))
            work = follow(client, update(client, group_id))
            if work["status"] != "SUCCEEDED":
                problems.append(str(ok(client.get(f"{API}/workRequests/{work['id']}/errors"))))
            # Acknowledged: what is admitted from now on is the new group's.
            index = len(history) - 2
            history[index] = (history[index][0], time.monotonic(), history[index][2])
        stop.set()
        for client_done in clients:
            client_done.result()
    assert not problems, problems[:5]
    assert counts["whole"] > 100, counts
    assert counts["aborted"] > 0
    print(f"12 updates, {counts}")


def test_fifty_bad_updates_in_a_row_disturb_no_answer(
    live: Server, ids: dict[str, str], texts: dict[str, str], tiny_models: TinyModels
) -> None:
    """Each says which model it was and why; the old group answers all the while, and as it was."""
    bad = bad_models(live, tiny_models)
    with live.client() as client:
        assert swap(client, {"x": ids["a"], "y": ids["b"]})["status"] == "SUCCEEDED"
        before = status(client)
        with asking(live, {"x": texts["a"], "y": texts["b"], "base": texts["base"]}) as asked:
            for at in range(50):
                kind, model = bad[at % len(bad)]
                group = create_group(client, {"x": model, "z": ids["c"]})
                answer = asked_live(client, group)
                if answer.status_code != 202:  # what even a look at the headers finds
                    assert answer.json()["code"] == "StoreDamaged", (kind, answer.text)
                    assert kind not in ("no_op", "not_a_number", "other_values")
                    continue
                work = follow(client, answer.headers["opc-work-request-id"])
                assert work["status"] == "FAILED", kind
                errors = ok(client.get(f"{API}/workRequests/{work['id']}/errors"))
                blamed = {row["modelId"]: row["message"] for row in errors if "modelId" in row}
                assert list(blamed) == [model], (kind, errors)
                assert ("changes nothing" in blamed[model]) == (kind == "no_op"), (kind, blamed)
            while asked.right <= 100 and not asked.wrong:
                time.sleep(0.01)
        assert not asked.wrong, asked.wrong[:5]
        print(f"50 bad updates, {asked.right} right answers")
        after = status(client)
        assert after["groupId"] == before["groupId"]
        assert after["generation"] == before["generation"]
        assert all(model["resident"] for model in after["models"])
        assert swap(client, {"x": ids["b"]})["status"] == "SUCCEEDED"
        assert complete(client, "x") == texts["b"]


def bad_models(live: Server, models: TinyModels) -> list[tuple[str, str]]:
    """Registered models that cannot be served: how each was broken, and its id."""
    harm = [
        faults.no_op,
        faults.weights_missing,
        faults.truncated,
        faults.bad_json,
        faults.rank_too_large,
        faults.wrong_shapes,
        faults.not_a_number,
        faults.pickle,
        faults.other_values,
    ]
    store = live.directory / "data" / "store" / "adapters"
    found = []
    with live.client() as client:
        for seed, how in enumerate(harm, start=50):
            place = models.base.parent / f"bad-{how.__name__}"
            build_adapter(place, models.base, seed)
            if how is faults.no_op:  # nothing but a canary can tell
                how(place)
            had = set(store.iterdir())
            found.append((how.__name__, register(client, place)))
            (stored,) = set(store.iterdir()) - had
            if how is not faults.no_op:
                faults.damaged(stored, how)
    return found


@dataclass
class Asked:
    """What clients were answered: how often right, and everything else."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def asking(live: Server, wanted: dict[str, str], clients: int = 8) -> Iterator[Asked]:
    """Clients ask these keys all the while, and each answer must be the wanted one."""
    asked, stop = Asked(), threading.Event()

    def ask(number: int) -> None:
        with live.client() as client:
            for at in itertools.count(number):
                if stop.is_set():
                    return
                key = list(wanted)[at % len(wanted)]
                body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "model": key}
                response = client.post("/v1/completions", json=body)
                if response.status_code == 200 and (
                    response.json()["choices"][0]["text"] == wanted[key]
                ):
                    asked.right += 1
                else:
                    asked.wrong.append(f"{key}: {response.text}")

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(ask, number) for number in range(clients)]
        try:
            yield asked
        finally:
            stop.set()
        for one in working:
            one.result()


def test_the_command_sends_adapters_that_the_server_could_not_read(
    live: Server,
    ids: dict[str, str],
    texts: dict[str, str],
    tiny_models: TinyModels,
    tmp_path: Path,
) -> None:
    """From another directory, outside of the roots: one that is new, one that the server has."""
    store = live.directory / "data" / "store"
    build_adapter(tmp_path / "mine" / "new", tiny_models.base, 77)
    shutil.copytree(tiny_models.adapters["a"], tmp_path / "mine" / "known")
    members = [{"key": key, "source": f"./{key}"} for key in ("new", "known")]
    tree = {"base": {"model": "any"}, "group": {"name": "sent", "members": members}}
    file = tmp_path / "mine" / "next.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    had = set((store / "adapters").iterdir())
    done = run("update", "--live", str(file), "--url", live.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the server has 1 of 2 from here" in done.stderr
    assert done.stderr.count("Sending new, ") == 2, "as it begins and as it ends"
    assert "Group 'sent' is live" in done.stderr
    assert len(set((store / "adapters").iterdir()) - had) == 1
    assert list((store / "unclaimed").iterdir()) == []
    with live.client() as client:
        assert complete(client, "known") == texts["a"]
        assert complete(client, "new") not in texts.values()
        assert {each["inferenceKey"] for each in status(client)["models"]} == {"new", "known"}
