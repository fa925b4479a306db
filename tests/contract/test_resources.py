"""Every kind of resource is created, read, listed, changed and deleted, whatever has the records.

`pytest --postgres tests/contract tests/api/control` has the whole contract on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from stacked.config import StorageConfig
from tests.contract.rig import Rig, rig
from tests.models.remote import PREFIX
from tests.postgres import Postgres
from tests.waiting import until


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    storage = StorageConfig()
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        postgres.run("CREATE DATABASE resources")
        storage = StorageConfig(database=SecretStr(postgres.url("resources")))
    with rig(tmp_path_factory.mktemp("rig"), storage) as running:
        yield running


def bodies(server: Rig, path: str) -> list[Any]:
    """Two requests to create what is at a path."""
    if path == "/modelGroups":
        return [_group(server) for _ in range(2)]
    name = _name(path)
    return [{"compartmentId": "c", "projectId": "p", name: f"{path} {n}"} for n in (1, 2)]


def _name(path: str) -> str:
    return "name" if path == "/modelVersionSets" else "displayName"


def _group(server: Rig) -> dict[str, Any]:
    entries = [{"modelId": server.onnx()}]
    return {
        "createType": "CREATE",
        "compartmentId": "c",
        "projectId": "p",
        "displayName": "g",
        "modelGroupDetails": {"type": "HETEROGENEOUS"},
        "memberModelEntries": {"memberModelDetails": entries},
    }


def gone(server: Rig, place: str) -> bool:
    answer = server.http.get(f"{PREFIX}{place}")
    return answer.status_code == 404 or answer.json()["lifecycleState"] == "DELETED"


@pytest.mark.parametrize(
    "path", ["/models", "/modelVersionSets", "/modelGroups", "/modelGroupVersionHistory"]
)
def test_a_resource_lives_from_its_creation_to_its_end(server: Rig, path: str) -> None:
    first, second = (server.ask("POST", path, body)["id"] for body in bodies(server, path))
    place = f"{path}/{first}"
    found = server.ask("GET", place)
    assert (found["id"], found["compartmentId"], found["projectId"]) == (first, "c", "p")
    ids = {first, second}
    listed, page = [], None
    while True:  # one on a page
        answer = server.http.get(
            f"{PREFIX}{path}", params={"limit": 1, "page": page} if page else {"limit": 1}
        )
        listed += [row["id"] for row in answer.json()]
        page = answer.headers.get("opc-next-page")
        if page is None:
            break
    assert ids <= set(listed)
    assert len(listed) == len(set(listed))
    name = _name(path)
    by_name = server.ask("GET", path, params={name: found[name], "id": first})
    assert [row["id"] for row in by_name] == [first]
    changed = server.ask("PUT", place, {"freeformTags": {"a": "é☃"}, "description": "'; DROP"})
    assert (changed["freeformTags"], changed["description"]) == ({"a": "é☃"}, "'; DROP")
    assert server.ask("GET", place)["freeformTags"] == {"a": "é☃"}
    for id in ids:
        server.http.delete(f"{PREFIX}{path}/{id}").raise_for_status()
        until(lambda id=id: gone(server, f"{path}/{id}"))  # type: ignore[misc]


def test_a_deployment_and_its_work_live_too(server: Rig) -> None:
    server.stock()
    id, group = server.ids["modelDeployments"][0], server.ids["modelGroups"][1]
    found = server.ask("GET", f"/modelDeployments/{id}")
    assert found["lifecycleState"] == "ACTIVE"
    assert [row["id"] for row in server.ask("GET", "/modelDeployments", params={"id": id})] == [id]
    details = {
        "deploymentType": "MODEL_GROUP",
        "updateType": "LIVE",
        "modelGroupConfigurationDetails": {"modelGroupId": group},
    }
    body = {"displayName": "changed", "modelDeploymentConfigurationDetails": details}
    server.ask("PUT", f"/modelDeployments/{id}", body)
    until(lambda: server.state(id) == "ACTIVE")
    found = server.ask("GET", f"/modelDeployments/{id}")
    assert found["displayName"] == "changed"
    served = found["modelDeploymentConfigurationDetails"]["modelGroupConfigurationDetails"]
    assert served["modelGroupId"] == group

    def work() -> list[dict[str, Any]]:
        return list(server.ask("GET", "/workRequests", params={"resourceId": id}))

    until(lambda: {row["status"] for row in work()} == {"SUCCEEDED"})
    newest, *_ = work()
    assert server.ask("GET", f"/workRequests/{newest['id']}/logs")
    assert server.ask("GET", f"/workRequests/{newest['id']}/errors") == []
    server.retire()
    assert server.state(id) == "DELETED"


def test_a_retry_token_is_answered_as_the_first_time(server: Rig) -> None:
    given = {"headers": {"opc-retry-token": "once"}}
    first, again = (server.ask("POST", "/models", {"displayName": "m"}, **given) for _ in range(2))
    assert first == again


def test_text_that_cannot_be_stored_is_refused_or_stored(server: Rig, tmp_path: Path) -> None:
    answer = server.http.post(f"{PREFIX}/models", json={"displayName": "a\0b"})
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["code"] == "InvalidParameter"
