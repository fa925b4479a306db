"""The control plane's wire: shapes, paging, errors. Records are real, the service is a double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from stacked.api.asked import Patches, patched
from stacked.api.control import OCI_CODES
from stacked.api.routes import create_routes
from stacked.api.wire import moment
from stacked.config import BaseConfig, Config, ServerConfig
from stacked.errors import SourceNotFound, StackedError, UpdateInProgress
from stacked.registry import (
    Affected,
    DeployedMember,
    Deployment,
    DeploymentState,
    GroupMember,
    MemberState,
    Model,
    ModelGroup,
    Registry,
    WorkRequest,
)
from stacked.service import Service

BASE = "ocid1.datasciencemodel.oc1..base"
SQL = "ocid1.datasciencemodel.oc1..sql"
PIRATE = "ocid1.datasciencemodel.oc1..pirate"
GROUP = "ocid1.datasciencemodelgroup.oc1..g1"
DEPLOYMENT = "ocid1.datasciencemodeldeployment.oc1..d"
ENGINE = {"max_model_len": 256, "max_loras": 4}


class Double:
    """What the routes use of a service: real records, and work that only notes it was asked."""

    def __init__(self, registry: Registry, server: ServerConfig) -> None:
        self.registry = registry
        self.config = Config(base=BaseConfig(model="tiny"), server=server)
        self.deployment_id = DEPLOYMENT
        self.updated: list[str] = []
        self.refuse: StackedError | None = None

    async def register_model(
        self, source: str, *, model_id: str | None, display_name: str
    ) -> Model:
        if source == "/nowhere":
            raise SourceNotFound("nothing stands at /nowhere")
        id = model_id or "ocid1.datasciencemodel.oc1..made"
        model = Model(id=id, kind="adapter", digest="sha256:1", source=source, rank=8)
        return self.registry.put_model(model)

    async def create_group(
        self, *, members: Sequence[GroupMember], custom_metadata: Sequence[Any], **rest: Any
    ) -> ModelGroup:
        group = ModelGroup(
            id=f"{GROUP}{len(self.registry.list_groups().items)}",
            base_model_id=BASE,
            members=tuple(members),
            custom_metadata=tuple(custom_metadata),
            **rest,
        )
        return self.registry.create_group(group)

    async def begin_update(self, group_id: str) -> WorkRequest:
        if self.refuse:
            raise self.refuse
        self.registry.get_group(group_id)
        self.updated.append(group_id)
        return self.registry.open_work_request("MODEL_DEPLOYMENT_UPDATE")

    async def status(self) -> dict[str, Any]:
        return {"deploymentId": DEPLOYMENT, "generation": 1, "models": []}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A base and two models in one group, which one deployment serves."""
    with Registry(tmp_path / "registry.sqlite") as registry:
        registry.put_model(Model(id=BASE, kind="base", digest="sha256:b", display_name="base"))
        for id, name in ((SQL, "sql"), (PIRATE, "pirate")):
            source = f"https://me:secret@host/{name}.zip?signature=secret"
            registry.put_model(
                Model(id=id, kind="adapter", digest=f"sha256:{name}", rank=8, source=source)
            )
        members = (GroupMember(BASE, "base"), GroupMember(SQL, "sql"), GroupMember(PIRATE, None))
        group = ModelGroup(id=GROUP, display_name="one", base_model_id=BASE, members=members)
        registry.create_group(group)
        registry.create_deployment(
            Deployment(id=DEPLOYMENT, display_name="demo", configuration={"engine": ENGINE})
        )
        work = registry.open_work_request(
            "MODEL_DEPLOYMENT_CREATE", [Affected("CREATED", "deployment", DEPLOYMENT)]
        )
        registry.advance(work.id, 10, "begun")
        registry.commit_group(DEPLOYMENT, GROUP, 1, work.id)
        registry.succeed(work.id, "done")
        states = [
            DeployedMember(model_id=member.model_id, key=member.key, state=MemberState.SUCCESS)
            for member in members
        ]
        registry.put_member_states(DEPLOYMENT, GROUP, states)
        yield registry


@pytest.fixture
def double(registry: Registry) -> Double:
    return Double(registry, ServerConfig())


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


def clone_body(items: list[Any], **modify: Any) -> dict[str, Any]:
    source = {
        "modelGroupCloneSourceType": "MODEL_GROUP",
        "sourceId": GROUP,
        "modifyModelGroupDetails": modify,
        "patchModelGroupMemberModelDetails": {"items": items},
    }
    return {"createType": "CLONE", "modelGroupCloneSourceDetails": source}


def live_body(group_id: str = GROUP, **more: Any) -> dict[str, Any]:
    return {
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            "updateType": "LIVE",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
            **more,
        }
    }


def members(group: Any) -> dict[str, str | None]:
    entries = group["memberModelEntries"]["memberModelDetails"]
    return {entry["modelId"]: entry["inferenceKey"] for entry in entries}


# --- models --------------------------------------------------------------------------------


def test_a_model_is_made_from_its_source_and_read_again(http: TestClient) -> None:
    items = [{"key": "source", "value": "/adapters/new"}, {"key": "modelId", "value": f"{SQL}2"}]
    tags = {"freeformTags": {"team": "a"}, "unknown": 1}
    made = post(http, "/models", {"displayName": "new", "customMetadataList": items, **tags})
    assert made == get(http, f"/models/{SQL}2")
    kept = {item["key"]: item["value"] for item in made["customMetadataList"]}
    assert kept == {"source": "/adapters/new", "digest": "sha256:1", "kind": "adapter", "rank": "8"}
    assert (made["lifecycleState"], made["freeformTags"]) == ("ACTIVE", {"team": "a"})
    assert (made["definedTags"], made["category"]) == ({}, "USER")


def test_the_secrets_of_a_source_are_not_shown(http: TestClient) -> None:
    text = json.dumps(get(http, f"/models/{SQL}"))
    assert "https://host/sql.zip" in text
    assert "secret" not in text


def test_a_model_without_a_source_or_with_one_that_is_not_there_is_refused(
    http: TestClient,
) -> None:
    assert "source" in post(http, "/models", {}, 400)["message"]
    body = {"customMetadataList": [{"key": "source", "value": "/nowhere"}]}
    assert post(http, "/models", body, 404)["code"] == "SourceNotFound"
    wrong = {
        "customMetadataList": [{"key": "source", "value": "/a"}, {"key": "modelId", "value": "x"}]
    }
    assert post(http, "/models", wrong, 400)["code"] == "InvalidParameter"


def test_models_are_listed_without_their_metadata(http: TestClient) -> None:
    rows = get(http, "/models", compartmentId="any", sortBy="displayName")
    assert [row["id"] for row in rows] == [SQL, PIRATE, BASE]
    assert all("customMetadataList" not in row for row in rows)
    assert get(http, "/models", lifecycleState="FAILED") == []


# --- groups --------------------------------------------------------------------------------


def test_a_group_is_made_and_read_with_its_discriminator_and_lists(http: TestClient) -> None:
    answer = http.post("/20190101/modelGroups", json=group_body())
    made = answer.json()
    assert answer.status_code == 200, answer.text
    assert made == get(http, f"/modelGroups/{made['id']}")
    assert made["modelGroupDetails"] == {
        "type": "STACKED",
        "baseModelId": BASE,
        "customMetadataList": [],
    }
    assert members(made) == {BASE: "base", SQL: "sql"}
    assert (made["compartmentId"], made["projectId"], made["createType"]) == ("c", "p", "CREATE")
    work = get(http, f"/workRequests/{answer.headers['opc-work-request-id']}")
    assert (work["status"], work["percentComplete"]) == ("SUCCEEDED", 100.0)
    assert work["resources"][0]["identifier"] == made["id"]


def test_metadata_tags_and_label_of_a_group_are_kept(http: TestClient) -> None:
    details = {
        "type": "STACKED",
        "baseModelId": BASE,
        "customMetadataList": [{"key": "k", "value": "v", "category": "Other"}],
    }
    body = group_body(modelGroupDetails=details, versionLabel="v7", freeformTags={"a": "b"})
    made = post(http, "/modelGroups", body)
    assert made["modelGroupDetails"]["customMetadataList"] == details["customMetadataList"]
    assert (made["versionLabel"], made["freeformTags"]) == ("v7", {"a": "b"})


def test_a_name_is_made_where_none_is_given(http: TestClient) -> None:
    body = group_body(displayName=None)
    assert post(http, "/modelGroups", body)["displayName"].startswith("modelgroup-")


def test_a_clone_takes_out_puts_in_and_moves_a_key(http: TestClient) -> None:
    items = [
        {"operation": "INSERT", "values": [{"modelId": PIRATE, "inferenceKey": "sql"}]},
        {"operation": "REMOVE", "values": [{"modelId": SQL}, {"modelId": PIRATE}]},
    ]
    made = post(http, "/modelGroups", clone_body(items, displayName="three"))
    assert members(made) == {BASE: "base", PIRATE: "sql"}
    assert (made["createType"], made["sourceModelGroupId"]) == ("CLONE", GROUP)
    assert made["displayName"] == "three"


def test_removing_by_key_leaves_the_models_other_keys() -> None:
    before = [GroupMember(SQL, "a"), GroupMember(SQL, "b")]
    value = {"modelId": SQL, "inferenceKey": "a"}
    one = Patches.model_validate({"items": [{"operation": "REMOVE", "values": [value]}]})
    assert patched(before, one.items) == [GroupMember(SQL, "b")]


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in group_body().items() if name not in names}


WRONG_GROUPS: list[tuple[str, Any, int, str, str]] = [
    ("no type", without("createType"), 400, "MissingParameter", "createType"),
    ("another type", group_body(createType="COPY"), 400, "InvalidParameter", "createType"),
    ("no details", without("modelGroupDetails"), 400, "MissingParameter", "modelGroupDetails"),
    (
        "no members",
        group_body(memberModelEntries={}),
        400,
        "MissingParameter",
        "memberModelEntries.memberModelDetails",
    ),
    (
        "heterogeneous",
        group_body(modelGroupDetails={"type": "HETEROGENEOUS"}),
        400,
        "InvalidParameter",
        "HETEROGENEOUS",
    ),
    (
        "no base",
        group_body(modelGroupDetails={"type": "STACKED"}),
        400,
        "InvalidParameter",
        "baseModelId",
    ),
    (
        "another base",
        group_body(modelGroupDetails={"type": "STACKED", "baseModelId": SQL}),
        400,
        "InvalidParameter",
        "base that is served here",
    ),
    (
        "a key too long",
        group_body(
            memberModelEntries={"memberModelDetails": [{"modelId": SQL, "inferenceKey": "k" * 33}]}
        ),
        400,
        "InvalidParameter",
        "at most 32",
    ),
    ("a name too long", group_body(displayName="n" * 256), 400, "InvalidParameter", "displayName"),
    (
        "a history",
        group_body(modelGroupVersionHistoryId="h"),
        400,
        "InvalidParameter",
        "not served yet",
    ),
    (
        "removing what is not there",
        clone_body([{"operation": "REMOVE", "values": [{"modelId": f"{SQL}9"}]}]),
        400,
        "InvalidParameter",
        "is not in the group",
    ),
    ("a list", [], 400, "CannotParseRequest", "JSON object"),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [row[1:] for row in WRONG_GROUPS],
    ids=[row[0] for row in WRONG_GROUPS],
)
def test_a_wrong_group_is_refused_by_place(
    http: TestClient, body: Any, status: int, code: str, said: str
) -> None:
    error = post(http, "/modelGroups", body, status)
    assert set(error) == {"code", "message"}
    assert error["code"] == code
    assert said in error["message"]
    assert len(get(http, "/modelGroups")) == 1


def test_a_clone_of_an_unknown_group_is_not_found(http: TestClient) -> None:
    body = clone_body([])
    body["modelGroupCloneSourceDetails"]["sourceId"] = "ocid1.nothing"
    assert post(http, "/modelGroups", body, 404)["code"] == "NotAuthorizedOrNotFound"


def test_the_models_of_a_group_have_their_keys(http: TestClient) -> None:
    rows = get(http, f"/modelGroups/{GROUP}/models")
    assert {row["modelId"]: row["inferenceKey"] for row in rows} == {
        BASE: "base",
        SQL: "sql",
        PIRATE: None,
    }
    assert get(http, f"/modelGroups/{GROUP}/models", inferenceKey="sql")[0]["id"] == SQL
    assert get(http, "/modelGroups/none/models", 404)["code"] == "NotAuthorizedOrNotFound"


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


def test_the_deployment_says_what_is_served_and_where(http: TestClient) -> None:
    one = get(http, f"/modelDeployments/{DEPLOYMENT}")
    config = one["modelDeploymentConfigurationDetails"]
    assert config["deploymentType"] == "MODEL_GROUP"
    assert config["modelGroupConfigurationDetails"] == {"modelGroupId": GROUP}
    assert config["infrastructureConfigurationDetails"]["infrastructureType"] == "INSTANCE_POOL"
    environment = config["environmentConfigurationDetails"]
    assert environment["environmentConfigurationType"] == "DEFAULT"
    assert one["modelDeploymentUrl"] == "http://here:8080"
    assert one["lifecycleState"] == "ACTIVE"
    assert [row["id"] for row in get(http, "/modelDeployments")] == [DEPLOYMENT]


def test_a_live_update_is_accepted_without_a_body(http: TestClient, double: Double) -> None:
    made = post(http, "/modelGroups", group_body())
    answer = update(http, live_body(made["id"]))
    assert (answer.status_code, answer.content) == (202, b"")
    assert double.updated == [made["id"]]
    work = get(http, f"/workRequests/{answer.headers['opc-work-request-id']}")
    assert (work["operationType"], work["status"]) == ("MODEL_DEPLOYMENT_UPDATE", "ACCEPTED")


def test_settings_that_are_sent_as_they_are_do_not_hinder(http: TestClient, double: Double) -> None:
    one = get(http, f"/modelDeployments/{DEPLOYMENT}")
    kept = one["modelDeploymentConfigurationDetails"]
    names = ("infrastructureConfigurationDetails", "environmentConfigurationDetails")
    same = {name: kept[name] for name in names}
    body = {"displayName": "demo", "compartmentId": "c"}
    assert update(http, {**body, **live_body(**same)}).status_code == 202
    assert double.updated == [GROUP]


def zdt(body: dict[str, Any]) -> dict[str, Any]:
    body["modelDeploymentConfigurationDetails"]["updateType"] = "ZDT"
    return body


def no_type(body: dict[str, Any]) -> dict[str, Any]:
    del body["modelDeploymentConfigurationDetails"]["updateType"]
    return body


SHAPE = {"instanceConfiguration": {"instanceShapeName": "VM.GPU.A10.1"}}
REFUSED: dict[str, tuple[Any, str, str]] = {
    "ZDT": (zdt(live_body()), "InvalidParameter", "ZDT"),
    "no update type": (no_type(live_body()), "InvalidParameter", "ZDT"),
    "a name alone": ({"displayName": "other"}, "InvalidParameter", "not served yet"),
    "a name too": ({"displayName": "other", **live_body()}, "InvalidParameter", "displayName"),
    "another shape": (
        live_body(infrastructureConfigurationDetails=SHAPE),
        "InvalidParameter",
        "instanceShapeName",
    ),
    "one model": (
        {"modelDeploymentConfigurationDetails": {"deploymentType": "SINGLE_MODEL"}},
        "InvalidParameter",
        "SINGLE_MODEL",
    ),
    "no deployment type": (
        {"modelDeploymentConfigurationDetails": {"updateType": "LIVE"}},
        "MissingParameter",
        "deploymentType",
    ),
    "no group": (
        live_body(modelGroupConfigurationDetails=None),
        "InvalidParameter",
        "modelGroupId",
    ),
}


@pytest.mark.parametrize(("body", "code", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_live_is_refused_and_says_what(
    http: TestClient, double: Double, body: Any, code: str, said: str
) -> None:
    answer = update(http, body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert said in answer.json()["message"]
    assert double.updated == []


def test_a_second_update_is_a_conflict_that_clients_do_not_repeat(
    http: TestClient, double: Double
) -> None:
    double.refuse = UpdateInProgress("one is under way")
    answer = update(http, live_body())
    assert answer.status_code == 409
    assert answer.json() == {"code": "UpdateInProgress", "message": "one is under way"}


def test_unknown_groups_and_deployments_are_not_found(http: TestClient) -> None:
    assert update(http, live_body("ocid1.none")).status_code == 404
    other = http.put("/20190101/modelDeployments/none", json=live_body())
    assert (other.status_code, other.json()["code"]) == (404, "NotAuthorizedOrNotFound")


def test_an_etag_changes_with_the_record_and_if_match_is_kept(
    http: TestClient, double: Double, registry: Registry
) -> None:
    before = http.get(f"/20190101/modelDeployments/{DEPLOYMENT}").headers["etag"]
    registry.set_deployment_state(DEPLOYMENT, DeploymentState.NEEDS_ATTENTION, "look")
    answer = update(http, live_body(), **{"if-match": before})
    assert (answer.status_code, answer.json()["code"]) == (412, "NoEtagMatch")
    now = http.get(f"/20190101/modelDeployments/{DEPLOYMENT}").headers["etag"]
    assert now != before
    assert update(http, live_body(), **{"if-match": f'"{now}"'}).status_code == 202
    assert double.updated == [GROUP]


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
    work = registry.open_work_request("MODEL_DEPLOYMENT_UPDATE")
    registry.advance(work.id, 40.5, "staging")
    answer = http.get(f"/20190101/workRequests/{work.id}")
    assert answer.headers["retry-after"] == "1"
    shown = answer.json()
    assert (shown["status"], shown["percentComplete"]) == ("IN_PROGRESS", 40.5)
    assert shown["resources"] == []
    assert shown["timeFinished"] is None
    registry.add_error(work.id, "RankRefused", "rank 512", SQL)
    registry.fail(work.id, "UpdateFailed", "1 model failed")
    done = http.get(f"/20190101/workRequests/{work.id}")
    assert "retry-after" not in done.headers
    assert done.headers["etag"] != answer.headers["etag"]
    logs = get(http, f"/workRequests/{work.id}/logs")
    assert [(line["message"], set(line)) for line in logs] == [
        ("staging", {"message", "timestamp"})
    ]
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
    assert shown == moment(registry.get_model(SQL).time_created)
    assert shown.endswith("Z")
    assert len(shown) == len("2026-01-02T03:04:05.678Z")


Call = Callable[[TestClient], httpx.Response]
WRITES: dict[str, Call] = {
    "a model": lambda http: http.post("/20190101/models", json={}),
    "a group": lambda http: http.post("/20190101/modelGroups", json=group_body()),
    "an update": lambda http: update(http, live_body()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writing_is_refused_where_runtime_updates_are_off(registry: Registry, write: Call) -> None:
    double = Double(registry, ServerConfig(host="0.0.0.0"))
    with client_of(double) as http:
        answer = write(http)
        assert (answer.status_code, answer.json()["code"]) == (403, "NotAllowed")
        assert len(get(http, "/modelGroups")) == 1
    assert double.updated == []


def test_a_body_over_the_limit_is_refused(registry: Registry) -> None:
    with client_of(Double(registry, ServerConfig(max_body_bytes=1024))) as http:
        body = group_body(description="x" * 2000)
        assert post(http, "/modelGroups", body, 413)["code"] == "PayloadTooLarge"


def test_our_own_status_is_the_services(http: TestClient, double: Double) -> None:
    assert http.get("/stacked/status").json() == asyncio.run(double.status())


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
