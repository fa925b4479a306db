"""`/stacked/status`: what is served, as the records, the routing and the engine have it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stacked.registry.usage import Counts
from tests.contract.rig import rig


def test_the_status_names_what_is_served_and_by_which_group(tmp_path: Path) -> None:
    with rig(tmp_path) as server:
        empty = server.http.get("/stacked/status").json()
        assert (empty["engine"]["state"], empty["groupId"], empty["models"]) == ("none", None, [])
        assert "nothing is deployed here" in empty["engine"]["reason"]
        server.stock()
        (deployment,), groups = server.ids["modelDeployments"], server.ids["modelGroups"]
        adapter = server.ids["models"][0]
        shown = server.http.get("/stacked/status").json()
        (model,) = shown.pop("models")
        disk = shown.pop("disk")
    assert shown == {
        "engine": {"state": "serving", "reason": "", "nextStart": None},
        "deploymentId": deployment,
        "groupId": groups[0],
        "groupName": "two",
        "generation": 1,
        "previousGroupId": None,
        "state": "ACTIVE",
        "reason": "",
        "update": None,
        "draining": [],
        "logs": None,
        "experiments": [],
        "gates": [],
    }
    assert disk["storedBytes"] < disk["freeBytes"] < disk["totalBytes"]
    assert not disk["low"]
    assert model.pop("digest").startswith("sha256:")
    assert model == {
        "modelId": adapter,
        "inferenceKey": "x",
        "rank": 4,
        "state": "SUCCESS",
        "reason": "",
        "leases": 0,
        "resident": True,
        "onDevice": False,
    }


def test_the_status_says_when_an_engine_that_died_is_started_again(tmp_path: Path) -> None:
    with rig(tmp_path) as server:
        server.stock()
        served = server.http.get("/stacked/status").json()
        slot = server.service._slot
        slot.lose("its engine has died (exit code 1)")
        slot.start_at = time.monotonic() + 60
        shown = server.http.get("/stacked/status").json()
        slot.start_at = time.monotonic()
        assert server.http.get("/stacked/status").json()["engine"]["nextStart"] is None
    engine = shown.pop("engine")
    wait = datetime.fromisoformat(engine["nextStart"]) - datetime.now(UTC)
    assert timedelta(0) < wait <= timedelta(seconds=60)
    assert (engine["state"], engine["reason"]) == (
        "restarting",
        "its engine has died (exit code 1)",
    )
    (model,) = served["models"]
    assert shown["models"] == [{**model, "resident": False}]
    for name in ("deploymentId", "groupId", "groupName", "generation", "state"):
        assert shown[name] == served[name]


def test_usage_is_read_since_a_time_and_by_one_of_two(tmp_path: Path) -> None:
    with rig(tmp_path) as server:
        assert server.http.get("/stacked/usage").json()["items"] == []
        server.service.usage.add("alice", "sql", Counts(2, 1, 30, 4))
        server.service.usage.add("bob", "sql", Counts(1, 0, 1, 1))
        (alice, bob) = server.http.get("/stacked/usage?since=1h").json()["items"]
        (sql,) = server.http.get("/stacked/usage?by=key").json()["items"]
        refused = server.http.get("/stacked/usage?since=soon")
    assert alice == {
        "credential": "alice",
        "key": "sql",
        "requests": 2,
        "errors": 1,
        "promptTokens": 30,
        "generatedTokens": 4,
    }
    assert bob["credential"] == "bob"
    assert (sql["credential"], sql["key"], sql["requests"]) == (None, "sql", 3)
    assert refused.status_code == 400
    assert "90s, 15m, 12h or 30d" in refused.text
