"""A deployment's life on the real engine: LIVE and other updates under traffic, canceled, killed.

Each operation by itself is in `tests/contract/operations`, on the same server.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from oci.data_science import models as sdk
from oci.exceptions import ServiceError

from tests.api.aftermath import Held, check_records, check_store, kill
from tests.conftest import PROMPT
from tests.contract.world import World
from tests.servers import Signed
from tests.serving import Server
from tests.waiting import until

pytestmark = pytest.mark.engine

OVER = ["SUCCEEDED", "FAILED", "CANCELED"]


def longest(world: World, id: str) -> int:
    """The longest request that the engine takes, as a path below the deployment tells."""
    rows = world.raw("GET", f"/{id}/predict/v1/models").json()["data"]
    return int(rows[0]["max_model_len"])


def logs(world: World, work_id: str) -> str:
    rows = world.control.list_work_request_logs(work_id).data
    return "\n".join(row.message for row in rows)


def follow(world: World, work_id: str) -> str:
    """How the work ended; its percentage only grows."""
    seen = [-1.0]

    def over() -> bool:
        work = world.control.get_work_request(work_id).data
        assert work.percent_complete >= seen[-1]
        seen.append(work.percent_complete)
        assert work.status not in OVER or (seen[-1] == 100) == (work.status == "SUCCEEDED")
        return work.status in OVER

    until(over, seconds=180)
    return str(world.control.get_work_request(work_id).data.status)


def update(world: World, id: str, group_id: str, kind: str, params: str | None = None) -> str:
    """Start an update; the id of its work request."""
    more: dict[str, Any] = {}
    if params is not None:
        environment = sdk.UpdateDefaultModelDeploymentEnvironmentConfigurationDetails
        more["environment_configuration_details"] = environment(
            environment_variables={"PARAMS": params, "PORT": "8080"}
        )
    changed = sdk.UpdateModelGroupDeploymentConfigurationDetails(
        model_group_configuration_details=sdk.UpdateModelGroupConfigurationDetails(
            model_group_id=group_id
        ),
        update_type=kind,
        **more,
    )
    details = sdk.UpdateModelDeploymentDetails(model_deployment_configuration_details=changed)
    answer = world.control.update_model_deployment(id, details)
    assert (answer.status, answer.data) == (202, None)
    return str(answer.headers["opc-work-request-id"])


def updated(world: World, id: str, group_id: str, kind: str, params: str | None = None) -> str:
    """Update and wait; the log of the work."""
    work = update(world, id, group_id, kind, params)
    status = follow(world, work)
    assert status == "SUCCEEDED", world.told(work)
    return logs(world, work)


def canceled(world: World, id: str, group_id: str, kind: str, params: str | None = None) -> None:
    """Start an update and give it up at once: what served before serves on."""
    work = update(world, id, group_id, kind, params)
    world.control.cancel_work_request(work)
    assert follow(world, work) == "CANCELED"
    assert world.state(id) == "ACTIVE"


@contextmanager
def traffic(world: World, id: str, key: str) -> Iterator[list[str]]:
    """One client that asks without a pause; what it got that was not an answer."""
    problems: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                world.answers(id, key)
            except ServiceError as error:
                problems.append(f"{error.status} {error.code}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield problems
    finally:
        stop.set()
        thread.join(timeout=60)


def test_deployment_is_updated_replaced_and_comes_back_after_a_kill(
    world: World, signed: Signed
) -> None:
    id = world.deployment()
    groups = {
        "ab": world.group("a", "b"),
        "ba": world.group(keys={"a": "b", "b": "a"}),
        "c": world.group("c"),
    }
    texts = {key: world.answers(id, key) for key in ("a", "b", "base")}
    with traffic(world, id, "a") as problems:
        canceled(world, id, groups["c"], "LIVE")  # what loads nothing is over before
        assert world.answers(id, "a") == texts["a"]
        updated(world, id, groups["ba"], "LIVE")
        assert world.answers(id, "a") == texts["b"]
    assert problems == []
    replaced(world, id, groups["ab"], texts)
    killed_and_back(world, signed, id, groups["c"], texts)
    late_request_is_ended(world, signed.server, id, groups)


def gated(world: World, keys: dict[str, str], expected: str) -> str:
    """A group whose gate wants this answer of key `a`, by the SDK's own metadata; its id."""
    example = {"prompt": PROMPT, "expected": expected, "max_tokens": 12}
    gate = {"name": "fox", "keys": ["a"], "threshold": 0.5, "margin": 0, "examples": [example]}
    details = world.stacked({key: world.adapters[name] for key, name in keys.items()})
    item = sdk.CustomMetadata(key="stacked.gates", value=json.dumps([gate]))
    details.model_group_details.custom_metadata_list = [item]
    return str(world.control.create_model_group(details).data.id)


def test_a_group_carries_a_gate_that_refuses_a_worse_adapter(world: World) -> None:
    id = world.deployment()
    world.live(id, world.group("a", "b"))
    first, second = world.answers(id, "a"), world.answers(id, "b")
    worse, better = (gated(world, {"a": "b"}, text) for text in (first, second))
    with traffic(world, id, "a") as problems:
        work = update(world, id, worse, "LIVE")
        assert follow(world, work) == "FAILED"
    assert problems == []
    errors = world.control.list_work_request_errors(work).data
    assert [each.code for each in errors] == ["GateFailed"] * 2
    for each in errors:
        assert "its mean score 0.000 is below 0.5" in each.message
        assert "0.000 against 1.000 of what is served" in each.message
    assert f"got {second!r}, served {first!r}" in logs(world, work)
    assert world.answers(id, "a") == first
    (shown,) = world.raw("GET", "/stacked/status").json()["gates"]
    assert (shown["inferenceKey"], shown["score"], shown["served"]) == ("a", 0.0, 1.0)
    said = updated(world, id, better, "LIVE")
    assert "gate fox: a scores 1.000, what is served 0.000, on 1 examples" in said
    assert world.answers(id, "a") == second
    updated(world, id, world.group("a", "b"), "LIVE")
    assert "not run: it was served before" in updated(world, id, better, "LIVE")
    assert "gates are not run" in updated(world, id, worse, "ZDT")


def replaced(world: World, id: str, group_id: str, texts: dict[str, str]) -> None:
    """Another engine: given up once, then with another group and another limit."""
    before = longest(world, id)
    with traffic(world, id, "a") as problems:
        canceled(world, id, group_id, "ZDT", "--max-model-len 1024")
        assert longest(world, id) == before != 1024
        told = updated(world, id, group_id, "ZDT", "--max-model-len 1024")
        both = "next to the old one" in told
        assert both or "the old engine is stopped before" in told
        assert longest(world, id) == 1024
        assert {key: world.answers(id, key) for key in texts} == texts
    assert set(problems) <= (set() if both else {"503 ServiceUnavailable"})
    kept = world.control.get_model_deployment(id).data.model_deployment_configuration_details
    variables = kept.environment_configuration_details.environment_variables
    assert variables["PARAMS"] == "--max-model-len 1024"


def killed_and_back(
    world: World, signed: Signed, id: str, wanted_id: str, texts: dict[str, str]
) -> None:
    """`kill -9` in the middle of a LIVE update: the committed group is served again."""
    server = signed.server
    with server.client(auth=world.signing) as client:
        held = Held.of(client)
        work = update(world, id, wanted_id, "LIVE")
        kill(server)
    check_store(server.directory / "data")
    shutil.rmtree(server.directory / "data" / "logs")
    signed.configure(drain_seconds=0.2)
    server.start()
    assert longest(world, id) == 1024
    with server.client(auth=world.signing) as client:
        if not check_records(client, held, wanted_id, work):
            assert {key: world.answers(id, key) for key in texts} == texts
        else:  # it was killed after its commit: then that is what is served
            assert world.answers(id, "c") not in texts.values()
    assert world.answers(id, "base") == texts["base"]


def late_request_is_ended(world: World, server: Server, id: str, groups: dict[str, str]) -> None:
    """A stream that outlasts the drain of a LIVE update ends with the reason."""
    updated(world, id, groups["ab"], "LIVE")
    body = {"prompt": PROMPT, "max_tokens": 1000, "ignore_eos": True, "model": "a", "stream": True}
    with (
        server.client(auth=world.signing) as client,
        client.stream("POST", f"/{id}/predict", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        updated(world, id, groups["c"], "LIVE")
        events = [line for line in lines if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "DrainExpired"
    updated(world, id, groups["ab"], "LIVE")
