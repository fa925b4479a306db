"""Deployments and their work over the wire: real records and states, engines that are doubles."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.config import ControlConfig, ServerConfig
from stacked.errors import EngineStartFailed
from stacked.service import Service
from tests.deployments.machine import Machine
from tests.waiting import until_async as until

LOGS = {"access": {"logId": "l", "logGroupId": "lg"}}
INFRASTRUCTURE = {
    "infrastructureType": "INSTANCE_POOL",
    "instanceConfiguration": {"instanceShapeName": "VM.GPU.A10.1"},
    "scalingPolicy": {"policyType": "FIXED_SIZE", "instanceCount": 1},
}
ENVIRONMENT = {
    "environmentConfigurationType": "OCIR_CONTAINER",
    "image": "img",
    "serverPort": 8080,
    "healthCheckPort": 8080,
    "environmentVariables": {"PARAMS": "--served-model-name base", "PORT": "8080"},
}


@dataclass
class Plane:
    """A machine, and how it is asked."""

    machine: Machine
    http: httpx.AsyncClient

    async def ask(
        self, method: str, path: str, expect: int, body: Any = None, **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        answer = await self.http.request(method, f"/20190101{path}", json=body, headers=named)
        assert answer.status_code == expect, f"{answer.status_code} {answer.text}"
        return answer

    async def get(self, path: str, **query: str) -> Any:
        answer = await self.http.get(f"/20190101{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def create(self, group_id: str, **changes: Any) -> httpx.Response:
        return await self.ask("POST", "/modelDeployments", 200, new_body(group_id, **changes))

    async def active(self, group_id: str) -> str:
        """A deployment that serves this group; its id."""
        made = await self.create(group_id)
        await self.machine.deployments.wait()
        return str(made.json()["id"])

    async def put(self, id: str, body: Any, expect: int = 202, **headers: str) -> httpx.Response:
        answer = await self.ask("PUT", f"/modelDeployments/{id}", expect, body, **headers)
        if expect == 202:
            assert answer.content == b""
            await self.machine.deployments.wait()
        return answer

    async def act(self, id: str, what: str, expect: int = 202, **headers: str) -> httpx.Response:
        path = f"/modelDeployments/{id}"
        if what == "delete":
            return await self.ask("DELETE", path, expect, **headers)
        return await self.ask("POST", f"{path}/actions/{what}", expect, **headers)


def plane_of(machine: Machine, **server: Any) -> Plane:
    service = SimpleNamespace(
        registry=machine.registry,
        ledger=machine.ledger,
        deployments=machine.deployments,
        member_states=machine.registry.deployments.list_members,
        config=ControlConfig(server=ServerConfig(**server)),
    )
    app = Gateway(cast(Service, service), create_routes(cast(Service, service)))
    transport = httpx.ASGITransport(app=app)
    return Plane(machine, httpx.AsyncClient(transport=transport, base_url="http://here:8080"))


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    machine = Machine(tmp_path)
    made = plane_of(machine)
    try:
        async with made.http:
            yield made
    finally:
        await machine.close()


def new_body(group_id: str, **changes: Any) -> dict[str, Any]:
    """As the SDK sends it; `changes` are of the configuration."""
    return {
        "displayName": "d",
        "projectId": "p",
        "compartmentId": "c",
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
            "infrastructureConfigurationDetails": INFRASTRUCTURE,
            "environmentConfigurationDetails": ENVIRONMENT,
            **changes,
        },
        "categoryLogDetails": LOGS,
    }


def change_body(group_id: str | None, kind: str | None, **more: Any) -> dict[str, Any]:
    details: dict[str, Any] = {"deploymentType": "MODEL_GROUP", **more}
    if kind is not None:
        details["updateType"] = kind
    if group_id is not None:
        details["modelGroupConfigurationDetails"] = {"modelGroupId": group_id}
    return {"modelDeploymentConfigurationDetails": details}


# --- create --------------------------------------------------------------------------------


async def test_created_deployment_is_answered_at_once_as_it_was_given(plane: Plane) -> None:
    group = plane.machine.group(1)
    plane.machine.starts.gate = asyncio.Event()
    answer = await plane.create(group)
    made = answer.json()
    assert made["lifecycleState"] == "CREATING"
    assert made["modelDeploymentUrl"] == f"http://here:8080/{made['id']}"
    kept = made["modelDeploymentConfigurationDetails"]
    assert kept["modelGroupConfigurationDetails"] == {"modelGroupId": group}
    assert kept["infrastructureConfigurationDetails"] == INFRASTRUCTURE
    assert kept["environmentConfigurationDetails"] == ENVIRONMENT
    assert made["categoryLogDetails"] == LOGS
    assert made["modelDeploymentSystemData"]["currentInstanceCount"] == 0
    work = answer.headers["opc-work-request-id"]
    running = await plane.get(f"/workRequests/{work}")
    assert (running["operationType"], running["status"]) == (
        "MODEL_DEPLOYMENT_CREATE",
        "IN_PROGRESS",
    )
    assert running["resources"][0]["identifier"] == made["id"]
    plane.machine.starts.gate.set()
    await plane.machine.deployments.wait()
    done = await plane.ask("GET", f"/modelDeployments/{made['id']}", 200)
    assert done.json()["lifecycleState"] == "ACTIVE"
    assert done.headers["etag"] != answer.headers["etag"]
    assert (await plane.get(f"/workRequests/{work}"))["percentComplete"] == 100.0


async def test_little_is_enough_and_the_rest_is_this_machines(plane: Plane) -> None:
    details = {
        "deploymentType": "MODEL_GROUP",
        "modelGroupConfigurationDetails": {"modelGroupId": plane.machine.group(1)},
    }
    body = {"modelDeploymentConfigurationDetails": details}
    made = (await plane.ask("POST", "/modelDeployments", 200, body)).json()
    assert made["displayName"].startswith("modeldeployment-")
    kept = made["modelDeploymentConfigurationDetails"]
    shape, *others = await plane.get("/modelDeploymentShapes", compartmentId="c")
    assert [{**other, "name": shape["name"]} for other in others] == [shape] * len(others)
    assert set(shape) == {"name", "coreCount", "memoryInGBs", "shapeSeries"}
    pool = kept["infrastructureConfigurationDetails"]
    assert pool["instanceConfiguration"]["instanceShapeName"] == shape["name"]
    assert kept["environmentConfigurationDetails"] == {
        "environmentConfigurationType": "DEFAULT",
        "environmentVariables": {},
    }


def environment(**changes: Any) -> dict[str, Any]:
    return {"environmentConfigurationDetails": {**ENVIRONMENT, **changes}}


def pool(**changes: Any) -> dict[str, Any]:
    return {"infrastructureConfigurationDetails": {**INFRASTRUCTURE, **changes}}


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "one model": ({"deploymentType": "SINGLE_MODEL"}, "InvalidParameter", "SINGLE_MODEL"),
    "no kind": ({"deploymentType": None}, "InvalidParameter", "deploymentType"),
    "no group": ({"modelGroupConfigurationDetails": None}, "InvalidParameter", "is missing"),
    "an empty group": (
        {"modelGroupConfigurationDetails": {}},
        "MissingParameter",
        "modelGroupConfigurationDetails.modelGroupId",
    ),
    "no shape": (pool(instanceConfiguration={}), "MissingParameter", "instanceShapeName"),
    "another pool": (pool(infrastructureType="CLUSTER"), "InvalidParameter", "infrastructureType"),
    "two machines": (
        pool(scalingPolicy={"policyType": "FIXED_SIZE", "instanceCount": 2}),
        "InvalidParameter",
        "one machine",
    ),
    "scaling": (
        pool(scalingPolicy={"policyType": "AUTOSCALING", "autoScalingPolicies": []}),
        "InvalidParameter",
        "AUTOSCALING",
    ),
    "a low port": (environment(serverPort=80), "InvalidParameter", "serverPort"),
    "a taken port": (environment(healthCheckPort=24224), "InvalidParameter", "24224"),
    "much environment": (
        environment(environmentVariables={"A": "x" * 2048}),
        "InvalidParameter",
        "2048",
    ),
    "a long command": (environment(cmd=["x" * 2048]), "InvalidParameter", "2048"),
    "numbers": (
        environment(environmentVariables={"PORT": 8080}),
        "InvalidParameter",
        "environmentVariables.PORT",
    ),
    "flags": (
        environment(environmentVariables={"PARAMS": "'"}),
        "InvalidParameter",
        "PARAMS",
    ),
    "another base": (
        environment(environmentVariables={"PARAMS": "--served-model-name ocid1.other"}),
        "InvalidParameter",
        "ocid1.other",
    ),
}


@pytest.mark.parametrize(("changes", "code", "said"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_deployment_is_refused_by_place(
    plane: Plane, changes: dict[str, Any], code: str, said: str
) -> None:
    body = new_body(plane.machine.group(1), **changes)
    error = (await plane.ask("POST", "/modelDeployments", 400, body)).json()
    assert set(error) == {"code", "message"}
    assert error["code"] == code
    assert said in error["message"]
    assert await plane.get("/modelDeployments") == []
    assert await plane.get("/workRequests") == []


@pytest.mark.parametrize("id", [5, True, ["l"], {}])
async def test_a_log_id_that_names_no_file_is_refused(plane: Plane, id: Any) -> None:
    body = new_body(plane.machine.group(1)) | {"categoryLogDetails": {"access": {"logId": id}}}
    answer = await plane.http.post(
        "/20190101/modelDeployments",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert "categoryLogDetails.access.logId" in answer.json()["message"]
    assert await plane.get("/modelDeployments") == []


async def test_groups_that_are_not_there_are_refused(plane: Plane) -> None:
    error = (await plane.ask("POST", "/modelDeployments", 404, new_body("ocid1.none"))).json()
    assert error["code"] == "NotAuthorizedOrNotFound"


async def test_second_deployment_is_a_conflict_with_its_reason(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    body = new_body(plane.machine.group(2))
    error = (await plane.ask("POST", "/modelDeployments", 409, body)).json()
    assert error["code"] == "Conflict"
    assert id in error["message"]


async def test_failed_deployment_says_why_everywhere(plane: Plane) -> None:
    plane.machine.starts.fails = [EngineStartFailed("no memory")]
    made = await plane.create(plane.machine.group(1))
    await plane.machine.deployments.wait()
    id, work = made.json()["id"], made.headers["opc-work-request-id"]
    found = await plane.get(f"/modelDeployments/{id}")
    assert (found["lifecycleState"], found["lifecycleDetails"]) == ("FAILED", "no memory")
    (error,) = await plane.get(f"/workRequests/{work}/errors")
    assert (error["code"], error["message"]) == ("EngineStartFailed", "no memory")
    states = await plane.get(f"/modelDeployments/{id}/models/modelState", sortOrder="ASC")
    assert [(row["inferenceKey"], row["state"]) for row in states] == [
        ("base", "FAILED"),
        ("k1", "FAILED"),
    ]


# --- update --------------------------------------------------------------------------------


async def test_live_update_takes_what_is_sent_along_unchanged(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    group = plane.machine.group(2)
    same = {
        "infrastructureConfigurationDetails": INFRASTRUCTURE,
        "environmentConfigurationDetails": ENVIRONMENT,
    }
    body = {
        **change_body(group, "LIVE", **same),
        "displayName": "d2",
        "compartmentId": "another",
        "categoryLogDetails": LOGS,
    }
    work = (await plane.put(id, body)).headers["opc-work-request-id"]
    assert (await plane.get(f"/workRequests/{work}"))["status"] == "SUCCEEDED"
    found = await plane.get(f"/modelDeployments/{id}")
    chosen = found["modelDeploymentConfigurationDetails"]["modelGroupConfigurationDetails"]
    assert chosen == {"modelGroupId": group}
    assert (found["displayName"], found["compartmentId"]) == ("d2", "c")
    assert plane.machine.serves() == ["k2"]
    assert len(plane.machine.starts.started) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (environment(environmentVariables={"PARAMS": "--seed 1"}), "environmentVariables.PARAMS"),
        (
            pool(instanceConfiguration={"instanceShapeName": "VM.GPU.A10.2"}),
            "instanceShapeName",
        ),
    ],
)
async def test_live_update_changes_the_group_alone(
    plane: Plane, more: dict[str, Any], said: str
) -> None:
    id = await plane.active(plane.machine.group(1))
    body = change_body(plane.machine.group(2), "LIVE", **more)
    error = (await plane.put(id, body, 400)).json()
    assert error["code"] == "InvalidParameter"
    assert said in error["message"]
    assert "ZDT" in error["message"]
    assert plane.machine.serves() == ["k1"]


@pytest.mark.parametrize("kind", ["ZDT", None])
async def test_other_updates_replace_the_engine(plane: Plane, kind: str | None) -> None:
    id = await plane.active(plane.machine.group(1))
    variables = {"PARAMS": "--max-model-len 7"}
    more = {"environmentConfigurationDetails": {**ENVIRONMENT, "environmentVariables": variables}}
    work = (await plane.put(id, change_body(None, kind, **more))).headers["opc-work-request-id"]
    logs = [row["message"] for row in await plane.get(f"/workRequests/{work}/logs")]
    assert any("beside the old one" in line for line in logs)
    assert len(plane.machine.starts.started) == 2
    found = await plane.get(f"/modelDeployments/{id}")
    kept = found["modelDeploymentConfigurationDetails"]["environmentConfigurationDetails"]
    assert kept == {**ENVIRONMENT, "environmentVariables": variables}


@pytest.mark.parametrize(
    "body",
    [
        {"displayName": "other", "description": "why", "freeformTags": {"a": "b"}},
        {"displayName": "other", **change_body(None, "ZDT")},
        {"displayName": "other", **change_body(None, "ZDT", **environment())},
        {"displayName": "other", **change_body(None, "ZDT", **pool(bandwidthMbps=20))},
    ],
)
async def test_engine_is_left_alone_where_nothing_of_it_changes(
    plane: Plane, body: dict[str, Any]
) -> None:
    id = await plane.active(plane.machine.group(1))
    work = (await plane.put(id, body)).headers["opc-work-request-id"]
    assert (await plane.get(f"/workRequests/{work}"))["status"] == "SUCCEEDED"
    found = await plane.get(f"/modelDeployments/{id}")
    assert found["displayName"] == "other"
    assert found["freeformTags"] == body.get("freeformTags", {})
    pool_now = found["modelDeploymentConfigurationDetails"]["infrastructureConfigurationDetails"]
    assert pool_now.get("bandwidthMbps") == (20 if "bandwidthMbps" in str(body) else None)
    assert len(plane.machine.starts.started) == 1


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (change_body("g", "SOON"), "InvalidParameter", "updateType"),
        (change_body(None, "LIVE"), "InvalidParameter", "modelGroupId"),
        (
            {"modelDeploymentConfigurationDetails": {"updateType": "LIVE"}},
            "MissingParameter",
            "deploymentType",
        ),
        (change_body("g", None, deploymentType="SINGLE_MODEL"), "InvalidParameter", "SINGLE"),
        ({"displayName": "n" * 256}, "InvalidParameter", "displayName"),
    ],
)
async def test_wrong_update_is_refused(plane: Plane, body: Any, code: str, said: str) -> None:
    id = await plane.active(plane.machine.group(1))
    error = (await plane.put(id, body, 400)).json()
    assert error["code"] == code
    assert said in error["message"]


async def test_blocks_that_are_too_much_together_are_refused_and_leave_the_deployment(
    plane: Plane,
) -> None:
    words = ["x" * 1200]
    made = await plane.create(plane.machine.group(1), **environment(cmd=words))
    await plane.machine.deployments.wait()
    id, before = made.json()["id"], await plane.get(f"/modelDeployments/{made.json()['id']}")
    body = change_body(None, "ZDT", **environment(entrypoint=words))
    assert "under 2048 bytes" in (await plane.put(id, body, 400)).json()["message"]
    assert await plane.get(f"/modelDeployments/{id}") == before


async def test_what_a_block_has_under_any_other_name_is_shown_as_it_was_given(
    plane: Plane,
) -> None:
    more = {"stored": 1, "model_fields_set": {"a": None}, "instance_configuration": [], "copy": {}}
    made = await plane.create(plane.machine.group(1), **pool(**more))
    await plane.machine.deployments.wait()
    id = made.json()["id"]
    await plane.put(id, change_body(None, "ZDT", **pool(**more, stored2=2)))
    found = await plane.get(f"/modelDeployments/{id}")
    kept = found["modelDeploymentConfigurationDetails"]["infrastructureConfigurationDetails"]
    assert kept == {**INFRASTRUCTURE, **more, "stored2": 2}
    assert len(plane.machine.starts.started) == 1


async def test_update_to_an_unknown_group_or_of_an_unknown_deployment(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    for place, group in ((id, "ocid1.none"), ("ocid1.none", plane.machine.group(2))):
        error = (await plane.put(place, change_body(group, "LIVE"), 404)).json()
        assert error["code"] == "NotAuthorizedOrNotFound"


# --- actions -------------------------------------------------------------------------------


async def test_life_goes_by_work_requests_without_bodies(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    for action, state in (
        ("deactivate", "INACTIVE"),
        ("activate", "ACTIVE"),
        ("delete", "DELETED"),
    ):
        answer = await plane.act(id, action)
        assert answer.content == b""
        await plane.machine.deployments.wait()
        work = await plane.get(f"/workRequests/{answer.headers['opc-work-request-id']}")
        assert work["operationType"] == f"MODEL_DEPLOYMENT_{action.upper()}"
        assert work["status"] == "SUCCEEDED"
        assert (await plane.get(f"/modelDeployments/{id}"))["lifecycleState"] == state
        again = await plane.act(id, action, 404 if action == "delete" else 409)
        assert again.json()["code"] in ("Conflict", "NotAuthorizedOrNotFound")
    for action in ("deactivate", "activate", "delete"):
        for gone in (id, "ocid1.none"):
            error = (await plane.act(gone, action, 404)).json()
            assert error["code"] == "NotAuthorizedOrNotFound"


async def test_stale_etags_stop_every_change(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    path = f"/modelDeployments/{id}"
    old = (await plane.ask("GET", path, 200)).headers["etag"]
    await plane.put(id, {"displayName": "other"}, if_match=old)
    for action in ("activate", "deactivate", "delete"):
        error = await plane.act(id, action, 412, if_match=old)
        assert error.json()["code"] == "NoEtagMatch"
    await plane.put(id, {"displayName": "third"}, 412, if_match=old)
    move = {"compartmentId": "other"}
    await plane.ask("POST", f"{path}/actions/changeCompartment", 412, move, if_match=old)
    now = (await plane.ask("GET", path, 200)).headers["etag"]
    await plane.act(id, "deactivate", 202, if_match=f'"{now}"')


async def test_compartment_is_changed(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    path = f"/modelDeployments/{id}"
    place = f"{path}/actions/changeCompartment"
    answer = await plane.ask("POST", place, 204, {"compartmentId": "other"})
    found = await plane.ask("GET", path, 200)
    assert found.json()["compartmentId"] == "other"
    assert answer.headers["etag"] == found.headers["etag"]
    assert (await plane.ask("POST", place, 400, {})).json()["code"] == "MissingParameter"


async def test_deployments_are_listed_by_name_state_and_age(plane: Plane) -> None:
    first = await plane.active(plane.machine.group(1))
    await plane.act(first, "delete")
    await plane.machine.deployments.wait()
    second = await plane.active(plane.machine.group(2))
    await plane.put(second, {"displayName": "a"})
    rows = await plane.get("/modelDeployments", compartmentId="c")
    assert [row["id"] for row in rows] == [second, first]
    assert all("lifecycleDetails" not in row for row in rows)
    by_name = await plane.get("/modelDeployments", sortBy="displayName")
    assert [row["displayName"] for row in by_name] == ["a", "d"]
    for query, ids in (
        ({"lifecycleState": "DELETED"}, [first]),
        ({"displayName": "a"}, [second]),
        ({"id": first}, [first]),
        ({"projectId": "none"}, []),
        ({"createdBy": "nobody"}, []),
    ):
        found = await plane.get("/modelDeployments", **query)
        assert [row["id"] for row in found] == ids, query


# --- work requests -------------------------------------------------------------------------


async def test_update_is_canceled_until_it_has_switched(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    plane.machine.starts.gate = asyncio.Event()
    path, body = f"/modelDeployments/{id}", change_body(plane.machine.group(2), "ZDT")
    work = (await plane.ask("PUT", path, 202, body)).headers["opc-work-request-id"]
    place = f"/workRequests/{work}"
    await plane.ask("DELETE", place, 412, if_match="stale")
    assert (await plane.ask("DELETE", place, 202)).content == b""
    await plane.machine.deployments.wait()
    assert (await plane.get(place))["status"] == "CANCELED"
    assert (await plane.get(path))["lifecycleState"] == "ACTIVE"
    assert plane.machine.serves() == ["k1"]
    error = (await plane.ask("DELETE", place, 409)).json()
    assert (error["code"], "CANCELED" in error["message"]) == ("Conflict", True)
    error = (await plane.ask("DELETE", "/workRequests/none", 404)).json()
    assert error["code"] == "NotAuthorizedOrNotFound"


async def test_update_that_has_switched_says_that_it_cannot_be_canceled(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    lease = plane.machine.starts.started[0].live.admit({"key": "k1"}).lease
    path, body = f"/modelDeployments/{id}", change_body(plane.machine.group(2), "LIVE")
    work = (await plane.ask("PUT", path, 202, body)).headers["opc-work-request-id"]
    await until(lambda: plane.machine.serves() == ["k2"])
    error = (await plane.ask("DELETE", f"/workRequests/{work}", 409)).json()
    assert error["code"] == "Conflict"
    assert "serves already" in error["message"]
    lease.release()


async def test_work_is_listed_by_operation_status_and_resource(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    await plane.act(id, "deactivate")
    await plane.machine.deployments.wait()
    for query, count in (
        ({"resourceId": id}, 2),
        ({"operationType": "MODEL_DEPLOYMENT_CREATE"}, 1),
        ({"status": "SUCCEEDED"}, 2),
        ({"status": "CANCELED"}, 0),
    ):
        assert len(await plane.get("/workRequests", **query)) == count, query
    rows = await plane.get("/workRequests", sortBy="operationType", sortOrder="ASC")
    assert [row["operationType"].rpartition("_")[2] for row in rows] == ["CREATE", "DEACTIVATE"]


# --- who may, and inference paths ----------------------------------------------------------


async def test_writing_is_refused_where_runtime_updates_are_off(plane: Plane) -> None:
    id = await plane.active(plane.machine.group(1))
    closed = plane_of(plane.machine, host="0.0.0.0")
    async with closed.http:
        for method, path in (
            ("POST", "/modelDeployments"),
            ("PUT", f"/modelDeployments/{id}"),
            ("DELETE", f"/modelDeployments/{id}"),
            ("POST", f"/modelDeployments/{id}/actions/activate"),
            ("POST", f"/modelDeployments/{id}/actions/deactivate"),
            ("POST", f"/modelDeployments/{id}/actions/changeCompartment"),
            ("DELETE", "/workRequests/none"),
        ):
            error = (await closed.ask(method, path, 403, {})).json()
            assert error["code"] == "NotAllowed"


@pytest.mark.parametrize(
    "rest", ["/predict", "/predictWithResponseStream", "/predict/v1/completions"]
)
async def test_only_the_active_deployment_is_reached_below_its_id(plane: Plane, rest: str) -> None:
    id = await plane.active(plane.machine.group(1))
    await plane.act(id, "deactivate")
    await plane.machine.deployments.wait()
    for unknown in (id, "ocid1.none"):
        answer = await plane.http.post(f"/{unknown}{rest}", json={"prompt": "x"})
        assert answer.status_code == 404
        tree = answer.json()
        assert tree.get("error", tree)["code"] == "NotAuthorizedOrNotFound"
    answer = await plane.http.get("/ocid1.none/predict/v1/models")
    assert answer.status_code == 404


async def test_deployment_that_is_on_its_way_is_not_ready(plane: Plane) -> None:
    plane.machine.starts.gate = asyncio.Event()
    made = (await plane.create(plane.machine.group(1))).json()
    answer = await plane.http.post(f"/{made['id']}/predict", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
