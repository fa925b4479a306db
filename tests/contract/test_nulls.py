"""Nulls in bodies, which the SDK never sends and dicts do: a field that is null was left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.rig import Rig, rig
from tests.models.remote import PREFIX
from tests.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("nulls")) as running:
        running.stock()
        running.retire()
        yield running


def test_a_deployment_shows_no_null_blocks_and_takes_them_back_live(server: Rig) -> None:
    group, other = server.ids["modelGroups"][:2]
    environment = {"environmentConfigurationType": "DEFAULT", "environmentVariables": None}
    pool = {
        "infrastructureType": "INSTANCE_POOL",
        "instanceConfiguration": {"instanceShapeName": "x"},
        "scalingPolicy": None,
    }

    def details(id: str, **more: Any) -> dict[str, Any]:
        blocks = {
            "environmentConfigurationDetails": environment,
            "infrastructureConfigurationDetails": pool,
        }
        chosen = {"modelGroupConfigurationDetails": {"modelGroupId": id}}
        return {"deploymentType": "MODEL_GROUP", **chosen, **blocks, **more}

    place, key = "/modelDeployments", "modelDeploymentConfigurationDetails"
    made = server.ask("POST", place, {key: details(group), "categoryLogDetails": None})
    until(lambda: server.state(made["id"]) == "ACTIVE")
    shown = server.ask("GET", f"{place}/{made['id']}")[key]
    assert shown["environmentConfigurationDetails"]["environmentVariables"] == {}
    assert "scalingPolicy" not in shown["infrastructureConfigurationDetails"]
    body = {key: details(other, updateType="LIVE")}
    answer = server.http.put(f"{PREFIX}{place}/{made['id']}", json=body)
    assert answer.status_code == 202, answer.text
    until(lambda: server.state(made["id"]) == "ACTIVE")
    chosen = server.ask("GET", f"{place}/{made['id']}")[key]["modelGroupConfigurationDetails"]
    assert chosen == {"modelGroupId": other}


def test_lists_and_tags_are_never_null(server: Rig) -> None:
    nothing = dict.fromkeys(
        ("displayName", "description", "freeformTags", "definedTags", "customMetadataList")
    )
    model = server.ask("POST", "/models", nothing)
    assert model["displayName"].startswith("model-")
    assert (model["freeformTags"], model["customMetadataList"]) == ({}, [])
    changed = server.ask("PUT", f"/models/{model['id']}", nothing)
    assert changed["displayName"] == model["displayName"]
