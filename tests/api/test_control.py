"""The control plane's wire: shapes, paging, errors. Records are real, the service is a double."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from stacked.api.control.base import moment
from stacked.api.errors import OCI_CODES
from stacked.api.routes import create_routes
from stacked.catalogue import Catalogue
from stacked.config import AuthConfig, BaseConfig, Config, OciAuth, ServerConfig
from stacked.errors import StackedError
from stacked.registry import (
    Affected,
    DeployedMember,
    Deployment,
    GroupMember,
    GroupRecord,
    MemberState,
    Model,
    Registry,
)
from stacked.service import Service
from stacked.store import AdapterStore

BASE = "ocid1.datasciencemodel.oc1..base"
SQL = "ocid1.datasciencemodel.oc1..sql"
PIRATE = "ocid1.datasciencemodel.oc1..pirate"
GROUP = "ocid1.datasciencemodelgroup.oc1..g1"
DEPLOYMENT = "ocid1.datasciencemodeldeployment.oc1..d"
ENGINE = {"max_model_len": 256, "max_loras": 4}


class Double:
    """What the routes use of a service: real records, and work that only notes it was asked."""

    def __init__(self, registry: Registry, server: ServerConfig, place: Path) -> None:
        self.registry = registry
        self.catalogue = Catalogue(registry, AdapterStore(place / "store"), place / "artifacts")
        self.config = Config(base=BaseConfig(model="tiny"), server=server)
        self.active = SimpleNamespace(deployment_id=DEPLOYMENT)
        self.member_states = registry.deployments.list_members


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A base and two models in one group, which one deployment serves."""
    with Registry(tmp_path / "registry.sqlite") as registry:
        registry.models.put(Model(id=BASE, kind="base", digest="sha256:b", display_name="base"))
        for id, name in ((SQL, "sql"), (PIRATE, "pirate")):
            digest = f"sha256:{name}"
            registry.models.put(
                Model(id=id, kind="adapter", digest=digest, rank=8, base_model_id=BASE)
            )
        members = (GroupMember(BASE, "base"), GroupMember(SQL, "sql"), GroupMember(PIRATE, None))
        group = GroupRecord(id=GROUP, display_name="one", base_model_id=BASE, members=members)
        registry.groups.create(group)
        registry.deployments.create(
            Deployment(id=DEPLOYMENT, display_name="demo", configuration={"engine": ENGINE})
        )
        work = registry.work_requests.open(
            "MODEL_DEPLOYMENT_CREATE", [Affected("CREATED", "deployment", DEPLOYMENT)]
        )
        registry.work_requests.advance(work.id, 10, "begun")
        registry.deployments.commit(DEPLOYMENT, GROUP, 1, work.id)
        registry.work_requests.succeed(work.id, "done")
        states = [
            DeployedMember(model_id=member.model_id, key=member.key, state=MemberState.SUCCESS)
            for member in members
        ]
        registry.deployments.put_members(DEPLOYMENT, GROUP, states)
        yield registry


@pytest.fixture
def double(registry: Registry, tmp_path: Path) -> Double:
    return Double(registry, ServerConfig(), tmp_path)


def client_of(double: Double) -> TestClient:
    return TestClient(create_routes(cast(Service, double)), base_url="http://here:8080/")


@pytest.fixture
def http(double: Double) -> Iterator[TestClient]:
    with client_of(double) as client:
        yield client


def get(http: TestClient, path: str, expect: int = 200, /, **query: Any) -> Any:
    answer = http.get(f"/20190101{path}", params=query)
    assert answer.status_code == expect, answer.text
    return answer.json()


def post(http: TestClient, path: str, body: Any, expect: int = 200) -> Any:
    answer = http.post(f"/20190101{path}", json=body)
    assert answer.status_code == expect, answer.text
    return answer.json()


def update(http: TestClient, body: Any, **headers: str) -> httpx.Response:
    return http.put(f"/20190101/modelDeployments/{DEPLOYMENT}", json=body, headers=headers)


def group_body(**changes: Any) -> dict[str, Any]:
    return {
        "createType": "CREATE",
        "compartmentId": "c",
        "projectId": "p",
        "displayName": "two",
        "modelGroupDetails": {"type": "STACKED", "baseModelId": BASE},
        "memberModelEntries": {
            "memberModelDetails": [
                {"modelId": BASE, "inferenceKey": "base"},
                {"modelId": SQL, "inferenceKey": "sql"},
            ]
        },
        **changes,
    }


def live_body(group_id: str = GROUP, **more: Any) -> dict[str, Any]:
    return {
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            "updateType": "LIVE",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
            **more,
        }
    }


# --- lists ---------------------------------------------------------------------------------


def test_a_list_is_a_bare_array_in_pages_that_end(http: TestClient) -> None:
    for at in range(4):
        post(http, "/modelGroups", group_body(displayName=f"n{at}"))
    names: list[str] = []
    query: dict[str, Any] = {"limit": 2, "sortBy": "displayName", "sortOrder": "ASC"}
    sizes = []
    while True:
        answer = http.get("/20190101/modelGroups", params=query)
        rows = answer.json()
        sizes.append(len(rows))
        names += [row["displayName"] for row in rows]
        if "opc-next-page" not in answer.headers:
            break
        query["page"] = answer.headers["opc-next-page"]
    assert (names, sizes) == (["n0", "n1", "n2", "n3", "one"], [2, 2, 1])
    assert "memberModelEntries" not in rows[0]


def test_groups_are_newest_first_by_default(http: TestClient) -> None:
    post(http, "/modelGroups", group_body())
    assert [row["displayName"] for row in get(http, "/modelGroups")] == ["two", "one"]
    oldest = get(http, "/modelGroups", sortBy="timeCreated", sortOrder="ASC")
    assert [row["displayName"] for row in oldest] == ["one", "two"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "many"},
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "9" * 30},
        {"sortBy": "color"},
        {"sortOrder": "UP"},
        {"page": "made-up"},
        {"lifecycleState": "GREAT"},
    ],
)
def test_a_wrong_query_is_refused(http: TestClient, query: dict[str, str]) -> None:
    assert get(http, "/modelGroups", 400, **query)["code"] == "InvalidParameter"


# --- the deployment ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["models/modelState", "modelStates"])
def test_the_states_of_the_members(http: TestClient, path: str) -> None:
    place = f"/modelDeployments/{DEPLOYMENT}/{path}"
    rows = get(http, place, sortOrder="ASC", compartmentId="any")
    assert [(row["modelId"], row["inferenceKey"], row["state"]) for row in rows] == [
        (BASE, "base", "SUCCESS"),
        (SQL, "sql", "SUCCESS"),
        (PIRATE, None, "SUCCESS"),
    ]
    assert [row["modelId"] for row in get(http, place, inferenceKey="sql")] == [SQL]
    assert [row["modelId"] for row in get(http, place, modelId=PIRATE)] == [PIRATE]
    assert [row["modelId"] for row in get(http, place, displayName="base")] == [BASE]
    assert get(http, place, inferenceKey="none") == []
    first = http.get(f"/20190101{place}", params={"limit": 1, "sortBy": "displayName"})
    assert len(first.json()) == 1
    assert first.headers["opc-next-page"]
    assert get(http, f"/modelDeployments/none/{path}", 404)["code"] == "NotAuthorizedOrNotFound"


# --- work requests -------------------------------------------------------------------------


def test_work_its_logs_and_its_errors(http: TestClient, registry: Registry) -> None:
    work = registry.work_requests.open("MODEL_DEPLOYMENT_UPDATE")
    registry.work_requests.advance(work.id, 40.5, "accepted")
    registry.work_requests.advance(work.id, 40.5, "staging", "STAGE")
    answer = http.get(f"/20190101/workRequests/{work.id}")
    assert answer.headers["retry-after"] == "1"
    shown = answer.json()
    assert (shown["status"], shown["percentComplete"]) == ("IN_PROGRESS", 40.5)
    assert shown["resources"] == []
    assert shown["timeFinished"] is None
    registry.work_requests.add_error(work.id, "RankRefused", "rank 512", SQL)
    registry.work_requests.fail(work.id, "UpdateFailed", "1 model failed")
    done = http.get(f"/20190101/workRequests/{work.id}")
    assert "retry-after" not in done.headers
    assert done.headers["etag"] != answer.headers["etag"]
    logs = get(http, f"/workRequests/{work.id}/logs")
    assert [(line["message"], set(line)) for line in logs] == [
        ("accepted", {"message", "timestamp"}),
        ("staging", {"message", "timestamp", "step"}),
    ]
    assert logs[1]["step"] == "STAGE"
    first, last = get(http, f"/workRequests/{work.id}/errors")
    assert (first["code"], first["message"], first["modelId"]) == ("RankRefused", "rank 512", SQL)
    assert (last["code"], "modelId" in last) == ("UpdateFailed", False)


def test_work_is_listed_by_what_it_acts_on_and_how_it_stands(http: TestClient) -> None:
    rows = get(http, "/workRequests", resourceId=DEPLOYMENT)
    assert [row["operationType"] for row in rows] == ["MODEL_DEPLOYMENT_CREATE"]
    assert get(http, "/workRequests", status="SUCCEEDED", sortBy="timeAccepted") == rows
    assert get(http, "/workRequests", status="FAILED") == []
    assert get(http, "/workRequests", operationType="NONE") == []
    assert get(http, "/workRequests/none/logs", 404)["code"] == "NotAuthorizedOrNotFound"


# --- everything ----------------------------------------------------------------------------


def test_times_are_rfc_3339_in_utc(registry: Registry, http: TestClient) -> None:
    shown = get(http, f"/models/{SQL}")["timeCreated"]
    assert shown == moment(registry.models.get(SQL).time_created)
    assert shown.endswith("Z")
    assert len(shown) == len("2026-01-02T03:04:05.678Z")


Call = Callable[[TestClient], httpx.Response]
WRITES: dict[str, Call] = {
    "a model": lambda http: http.post("/20190101/models", json={}),
    "a group": lambda http: http.post("/20190101/modelGroups", json=group_body()),
    "an update": lambda http: update(http, live_body()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writing_is_refused_where_runtime_updates_are_off(
    registry: Registry, write: Call, tmp_path: Path
) -> None:
    double = Double(registry, ServerConfig(host="0.0.0.0"), tmp_path)
    with client_of(double) as http:
        answer = write(http)
        assert (answer.status_code, answer.json()["code"]) == (403, "NotAllowed")
        assert len(get(http, "/modelGroups")) == 1


def test_writing_is_allowed_on_any_address_where_requests_are_signed(
    registry: Registry, tmp_path: Path
) -> None:
    server = ServerConfig(host="0.0.0.0", auth=AuthConfig(oci=OciAuth()))
    with client_of(Double(registry, server, tmp_path)) as http:  # the gate is not here
        answer = http.post("/20190101/models", json={"displayName": "m"})
        assert answer.status_code == 200, answer.text


def test_a_body_over_the_limit_is_refused(registry: Registry, tmp_path: Path) -> None:
    with client_of(Double(registry, ServerConfig(max_body_bytes=1024), tmp_path)) as http:
        body = group_body(description="x" * 2000)
        assert post(http, "/modelGroups", body, 413)["code"] == "PayloadTooLarge"


SETTINGS: list[tuple[dict[str, Any] | None, str]] = [
    (ENGINE, ""),
    (None, ""),
    ({**ENGINE, "max_model_len": 512}, "(max_model_len)"),
    ({"max_model_len": 256, "dtype": "half"}, "(dtype, max_loras)"),
]


@pytest.mark.parametrize(("engine", "names"), SETTINGS)
def test_engine_settings_are_compared_and_not_shown(
    http: TestClient, engine: dict[str, Any] | None, names: str
) -> None:
    answer = http.post("/stacked/check", json={"engine": engine})
    if not names:
        assert (answer.status_code, answer.content) == (204, b"")
        return
    assert (answer.status_code, answer.json()["code"]) == (400, "UpdateNotLive")
    assert names in answer.json()["message"]
    assert "4" not in answer.json()["message"]


def test_what_oci_calls_an_error_is_an_error_of_ours() -> None:
    assert set(OCI_CODES) <= set(StackedError.tree())
