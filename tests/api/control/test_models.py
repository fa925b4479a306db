"""The catalogue's wire: records of models, with and without content."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.registry import Model
from tests.api.control.plane import BASE, Plane, meta, stacked_body
from tests.store.small import write_adapter, write_base


def source(path: Any, **more: str) -> dict[str, Any]:
    items = [{"key": "source", "value": str(path)}]
    return {"customMetadataList": items + [{"key": k, "value": v} for k, v in more.items()]}


def test_a_model_without_an_artifact_is_a_record_that_keeps_all_it_was_given(plane: Plane) -> None:
    version_set = plane.json("POST", "/modelVersionSets", body={"name": "line"})["id"]
    given = {
        "compartmentId": "c",
        "projectId": "p",
        "displayName": "new",
        "description": "what it is",
        "freeformTags": {"team": "a"},
        "definedTags": {"ns": {"k": "v"}},
        "customMetadataList": [{"key": "k", "value": "v", "category": "Other", "keywords": ["w"]}],
        "definedMetadataList": [{"key": "UseCaseType", "value": "ner"}],
        "inputSchema": "{}",
        "outputSchema": "[]",
        "versionLabel": "v1",
        "modelVersionSetId": version_set,
        "retentionSetting": {"archiveAfterDays": 3, "customerNotificationType": "NONE"},
        "backupSetting": {"isBackupEnabled": True, "backupRegion": "elsewhere"},
        "unknown": [1],
    }
    answer = plane.ask("POST", "/models", body=given)
    made = answer.json()
    assert made["id"].startswith("ocid1.datasciencemodel.oc1..")
    assert answer.headers["etag"] == plane.ask("GET", f"/models/{made['id']}").headers["etag"]
    assert made == plane.json("GET", f"/models/{made['id']}")
    for name in set(given) - {"customMetadataList", "definedMetadataList", "unknown"}:
        assert made[name] == given[name], name
    assert made["customMetadataList"] == [
        {
            "key": "k",
            "value": "v",
            "description": None,
            "category": "Other",
            "keywords": ["w"],
            "hasArtifact": False,
        }
    ]
    assert made["definedMetadataList"][0]["value"] == "ner"
    assert (made["lifecycleState"], made["category"]) == ("ACTIVE", "USER")
    assert made["isModelByReference"] is False
    assert (made["modelVersionSetName"], made["versionId"]) == ("line", 1)
    again = plane.json("POST", "/models", body=given)
    assert again["id"] != made["id"], "each creation is a model of its own"
    assert again["versionId"] == 2


def test_a_name_is_made_and_lists_are_never_null(plane: Plane) -> None:
    made = plane.json("POST", "/models", body={"displayName": None})
    assert made["displayName"].startswith("model-")
    assert (made["customMetadataList"], made["definedMetadataList"]) == ([], [])
    assert (made["freeformTags"], made["definedTags"]) == ({}, {})


def test_a_source_does_instead_of_an_upload(plane: Plane) -> None:
    place = write_adapter(plane.roots / "from-here")
    made = plane.json("POST", "/models", body={"displayName": "s", **source(place)})
    kept = meta(made)
    assert (kept["source"], kept["kind"], kept["rank"]) == (str(place), "adapter", "4")
    assert kept["baseModelId"] == BASE
    assert made["id"].endswith(kept["digest"].removeprefix("sha256:"))
    again = plane.json("POST", "/models", body={"displayName": "other", **source(place)})
    assert (again["id"], again["displayName"]) == (made["id"], "other")
    plane.json("POST", f"/models/{made['id']}/provenance", body={"gitBranch": "main"})
    plane.json("POST", "/models", body=source(place))
    assert plane.json("GET", f"/models/{made['id']}/provenance")["gitBranch"] == "main"
    own = f"{BASE}-mine"
    named = plane.json("POST", "/models", body=source(place, modelId=own))
    assert named["id"] == own


def test_a_base_by_source_is_kept_by_reference(plane: Plane) -> None:
    place = write_base(plane.roots / "other", prefix="transformer.")
    made = plane.json("POST", "/models", body=source(place))
    assert (meta(made)["kind"], made["isModelByReference"]) == ("base", True)
    assert plane.catalogue.bases.base(made["id"], "k").path == str(place)
    body = plane.json("GET", f"/models/{made['id']}/artifact/content", 404)
    assert body["code"] == "NotAuthorizedOrNotFound"
    elsewhere = write_base(plane.roots / "same-outline", prefix="transformer.")
    moved = source(elsewhere, modelId=made["id"])
    assert plane.json("POST", "/models", 409, moved)["code"] == "Conflict"


@pytest.mark.parametrize(
    ("place", "status", "code"),
    [
        ("/etc", 403, "SourceRefused"),
        ("nothing-there", 404, "SourceNotFound"),
        ("https://elsewhere/a.zip", 403, "SourceRefused"),
        ("someone/something", 403, "SourceRefused"),
    ],
)
def test_a_source_is_read_from_the_roots_alone(
    plane: Plane, place: str, status: int, code: str
) -> None:
    where = plane.roots / place if place == "nothing-there" else place
    assert plane.json("POST", "/models", status, source(where))["code"] == code


def test_the_secrets_of_a_source_are_not_shown(plane: Plane) -> None:
    address = "https://me:secret@host/a.zip?signature=secret"
    plane.registry.models.put(
        Model(id=f"{BASE}1", kind="adapter", digest="sha256:1", source=address)
    )
    shown = plane.ask("GET", f"/models/{BASE}1").text
    assert "https://host/a.zip" in shown
    assert "secret" not in shown


def test_an_adapter_is_checked_against_the_base_that_its_metadata_names(plane: Plane) -> None:
    other = plane.json("POST", "/models", body=source(write_base(plane.roots / "o", layers=1)))
    place = write_adapter(plane.roots / "fits-the-served-one")
    wrong = source(place, fine_tune_source=other["id"])
    assert plane.json("POST", "/models", 400, wrong)["code"] == "ModuleUnknown"
    unknown = source(place, fine_tune_source="ocid1.of.another.place")
    assert meta(plane.json("POST", "/models", body=unknown))["baseModelId"] == BASE
    adapter = plane.json("POST", "/models", body=source(place))["id"]
    not_a_base = source(place, fine_tune_source=adapter)
    assert plane.json("POST", "/models", 400, not_a_base)["code"] == "InvalidParameter"


def test_an_update_changes_what_it_names_and_nothing_else(plane: Plane) -> None:
    id = plane.model(description="d", freeformTags={"a": "1"}, definedTags={"n": {"k": "v"}})
    before = plane.json("GET", f"/models/{id}")
    changed = plane.json(
        "PUT",
        f"/models/{id}",
        body={
            "displayName": "new",
            "versionLabel": "v2",
            "freeformTags": {"b": "2"},
            "customMetadataList": [{"key": "k", "value": 7}],
            "compartmentId": "ignored",
            "inputSchema": "ignored",
        },
    )
    assert (changed["displayName"], changed["versionLabel"]) == ("new", "v2")
    assert (changed["description"], changed["compartmentId"]) == ("d", "")
    assert (changed["freeformTags"], changed["definedTags"]) == ({"b": "2"}, {"n": {"k": "v"}})
    assert meta(changed) == {"k": 7}
    assert (changed["inputSchema"], changed["timeCreated"]) == (None, before["timeCreated"])
    assert plane.json("PUT", f"/models/{id}", body={"description": ""})["description"] == ""


def test_metadata_that_was_read_can_be_sent_back(plane: Plane) -> None:
    id = plane.adapter(1)
    read = plane.json("GET", f"/models/{id}")
    items = [*read["customMetadataList"], {"key": "note", "value": "mine"}]
    changed = plane.json("PUT", f"/models/{id}", body={"customMetadataList": items})
    assert meta(changed) == {**meta(read), "note": "mine"}
    other = {"customMetadataList": [{"key": "source", "value": "/elsewhere"}]}
    assert "create another" in plane.json("PUT", f"/models/{id}", 400, other)["message"]


def test_models_are_switched_off_and_on(plane: Plane) -> None:
    id = plane.model()
    off = plane.json("POST", f"/models/{id}/actions/deactivate")
    assert off["lifecycleState"] == "INACTIVE"
    assert plane.json("POST", f"/models/{id}/actions/deactivate", 409)["code"] == "Conflict"
    assert plane.json("POST", f"/models/{id}/actions/activate")["lifecycleState"] == "ACTIVE"
    assert plane.json("POST", f"/models/{id}/actions/activate", 409)["code"] == "Conflict"


def test_a_deleted_model_can_be_read_and_nothing_else(plane: Plane) -> None:
    id = plane.adapter(1)
    plane.ask("DELETE", f"/models/{id}", 204)
    assert plane.json("GET", f"/models/{id}")["lifecycleState"] == "DELETED"
    assert plane.stored() == []
    for method, path, body in (
        ("DELETE", "", None),
        ("PUT", "", {"displayName": "x"}),
        ("POST", "/artifact", b"x"),
        ("GET", "/artifact/content", None),
        ("POST", "/provenance", {}),
        ("POST", "/actions/activate", None),
        ("POST", "/actions/deactivate", None),
        ("POST", "/actions/changeCompartment", {"compartmentId": "x"}),
    ):
        said = plane.json(method, f"/models/{id}{path}", 404, body)
        assert said["code"] == "NotAuthorizedOrNotFound"
    assert [row["id"] for row in plane.json("GET", "/models?lifecycleState=DELETED")] == [id]


def test_what_is_served_cannot_be_deleted(plane: Plane) -> None:
    said = plane.json("DELETE", f"/models/{BASE}", 409)
    assert said["code"] == "Conflict"
    assert "served by deployment" in said["message"]


def test_a_model_moves_to_another_compartment(plane: Plane) -> None:
    id = plane.model(compartmentId="c")
    path = f"/models/{id}/actions/changeCompartment"
    plane.ask("POST", path, 204, {"compartmentId": "d"})
    assert plane.json("GET", f"/models/{id}")["compartmentId"] == "d"
    assert plane.json("POST", path, 400, {})["code"] == "MissingParameter"


WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"displayName": "x"}),
    ("POST", "/actions/deactivate", None),
    ("POST", "/actions/changeCompartment", {"compartmentId": "x"}),
    ("POST", "/artifact", b"not a zip"),
    ("POST", "/provenance", {"gitBranch": "b"}),
    ("POST", "/customMetadata/k/artifact", b"text"),
    ("DELETE", "", None),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_a_write_for_another_state_of_the_model_is_refused(
    plane: Plane, method: str, path: str, body: Any
) -> None:
    id = plane.model()
    stale = plane.ask("GET", f"/models/{id}").headers["etag"]
    plane.json("PUT", f"/models/{id}", body={"description": "newer"})
    before = plane.json("GET", f"/models/{id}")
    said = plane.ask(method, f"/models/{id}{path}", 412, body, if_match=stale).json()
    assert said["code"] == "NoEtagMatch"
    assert plane.json("GET", f"/models/{id}") == before


def test_a_write_for_the_present_state_is_done(plane: Plane) -> None:
    id = plane.model()
    for method, path, body in (w for w in WRITES if w[1] != "/artifact"):
        fresh = plane.ask("GET", f"/models/{id}").headers["etag"]
        answer = plane.http.request(
            method,
            f"/20190101/models/{id}{path}",
            headers={"if-match": fresh},
            **({"content": body} if isinstance(body, bytes) else {"json": body}),
        )
        assert answer.is_success, answer.text
        assert answer.headers["etag"] != fresh


def test_provenance_is_written_once_and_then_updated(plane: Plane) -> None:
    path = f"/models/{plane.model()}/provenance"
    assert plane.json("GET", path, 404)["code"] == "NotAuthorizedOrNotFound"
    assert plane.json("PUT", path, 404, {"gitBranch": "x"})["code"] == "NotAuthorizedOrNotFound"
    made = plane.json("POST", path, body={"gitBranch": "main", "gitCommit": "1"})
    assert (made["gitBranch"], made["trainingId"]) == ("main", None)
    assert plane.json("POST", path, 409, {"gitBranch": "x"})["code"] == "Conflict"
    changed = plane.json("PUT", path, body={"gitCommit": "2"})
    assert (changed["gitBranch"], changed["gitCommit"]) == ("main", "2")
    assert plane.json("GET", path) == changed


def test_models_are_listed_by_every_filter(plane: Plane) -> None:
    one = plane.model(displayName="one", projectId="p", versionLabel="v1")
    two = plane.model(displayName="two", projectId="q")
    plane.registry.models.put(
        Model(id=f"{BASE}9", kind="adapter", digest="sha256:9", created_by="me", display_name="by")
    )

    def ids(query: str) -> list[str]:
        return [row["id"] for row in plane.json("GET", f"/models?compartmentId=c&{query}")]

    assert ids("displayName=one") == ids("versionLabel=v1") == ids("projectId=p") == [one]
    assert ids(f"id={two}") == [two]
    assert ids("createdBy=me") == [f"{BASE}9"]
    assert ids("category=SERVICE") == ids("modelVersionSetName=none") == []
    assert len(ids("category=USER")) == 4
    assert ids("lifecycleState=INACTIVE") == []
    assert ids("sortBy=displayName&sortOrder=DESC&limit=1") == [two]
    assert ids("limit=1")[0] == f"{BASE}9"
    rows = plane.json("GET", "/models")
    assert all("customMetadataList" not in row and "description" not in row for row in rows)
    assert plane.json("GET", "/models?category=OURS", 400)["code"] == "InvalidParameter"


def test_operations_of_object_storage_say_what_does_the_same_here(plane: Plane) -> None:
    id = plane.model()
    for action in ("exportArtifact", "importArtifact", "registerArtifactReference", "restore"):
        said = plane.json("POST", f"/models/{id}/actions/{action}", 501, {})
        assert said["code"] == "MethodNotImplemented"
        assert "object storage" in said["message"]
    assert plane.json("POST", f"/models/{id}/actions/dance", 404)["code"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"displayName": "n" * 256}, "displayName"),
        ({"description": "n" * 401}, "description"),
        ({"customMetadataList": [{"value": "v"}]}, "customMetadataList[0].key"),
        ({"retentionSetting": {"archiveAfterDays": 0}}, "archiveAfterDays"),
        ({"backupSetting": {"isBackupEnabled": True}}, "backupRegion"),
        ({"freeformTags": []}, "freeformTags"),
        ({"inputSchema": {}}, "inputSchema"),
    ],
)
def test_a_wrong_body_is_refused_by_place(plane: Plane, body: Any, place: str) -> None:
    said = plane.json("POST", "/models", 400, body)
    assert said["code"] in ("InvalidParameter", "MissingParameter")
    assert place in said["message"]
    assert [row["id"] for row in plane.json("GET", "/models")] == [BASE]


def test_a_group_shows_its_models_as_they_are_now(plane: Plane) -> None:
    id = plane.adapter(1)
    group = plane.json("POST", "/modelGroups", body=stacked_body((id, "k")))
    plane.json("PUT", f"/models/{id}", body={"displayName": "renamed"})
    rows = plane.json("GET", f"/modelGroups/{group['id']}/models?inferenceKey=k")
    assert [row["displayName"] for row in rows] == ["renamed"]
