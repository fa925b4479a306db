"""`/stacked/status`: what is served, as the records, the routing and the engine have it."""

from __future__ import annotations

from pathlib import Path

from tests.contract.rig import rig


def test_the_status_names_what_is_served_and_by_which_group(tmp_path: Path) -> None:
    with rig(tmp_path) as server:
        assert server.http.get("/stacked/status").status_code == 503
        server.stock()
        (deployment,), groups = server.ids["modelDeployments"], server.ids["modelGroups"]
        adapter = server.ids["models"][0]
        shown = server.http.get("/stacked/status").json()
        (model,) = shown.pop("models")
        disk = shown.pop("disk")
    assert shown == {
        "deploymentId": deployment,
        "groupId": groups[0],
        "groupName": "two",
        "generation": 1,
        "previousGroupId": None,
        "state": "ACTIVE",
        "reason": "",
        "update": None,
        "draining": [],
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
