"""Model groups on the wire: made, cloned, read, changed, switched off, deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacked.registry import GroupMember, GroupRecord, Model, ModelState
from tests.api.control.plane import (
    BASE,
    GROUP,
    Plane,
    archive_of,
    clone_body,
    control_plane,
    members_of,
    packed,
    stacked_body,
)
from tests.store.small import write_base


def insert(*entries: tuple[str, str | None]) -> dict[str, Any]:
    return {"operation": "INSERT", "values": [_entry(*entry) for entry in entries]}


def remove(*entries: tuple[str, str | None]) -> dict[str, Any]:
    return {"operation": "REMOVE", "values": [_entry(*entry) for entry in entries]}


def _entry(id: str, key: str | None) -> dict[str, str]:
    return {"modelId": id} | ({"inferenceKey": key} if key else {})


def make(plane: Plane, *entries: tuple[str, str | None], **more: Any) -> Any:
    return plane.json("POST", "/modelGroups", body=stacked_body(*entries, **more))


def other_kind(kind: str, *entries: tuple[str, str | None]) -> dict[str, Any]:
    details = {"memberModelDetails": [_entry(*entry) for entry in entries]}
    return stacked_body(modelGroupDetails={"type": kind}, memberModelEntries=details)


ENVIRONMENT = b"MODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: {INFERENCE_ENV_SLUG: '@'}}"


@pytest.fixture
def adapters(plane: Plane) -> tuple[str, str, str]:
    return plane.adapter(1), plane.adapter(2), plane.adapter(3)


def test_a_stacked_group_is_made_and_read_as_it_was_given(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    details = {
        "type": "STACKED",
        "baseModelId": BASE,
        "customMetadataList": [{"key": "k", "value": "v", "category": "Other"}],
    }
    body = stacked_body(
        (adapters[0], "sql"),
        (adapters[1], None),
        modelGroupDetails=details,
        description="d",
        versionLabel="v7",
        freeformTags={"a": "b"},
    )
    answer = plane.ask("POST", "/modelGroups?compartmentId=ignored", body=body)
    made = answer.json()
    assert made == plane.json("GET", f"/modelGroups/{made['id']}")
    assert made["modelGroupDetails"] == details
    assert members_of(made) == {BASE: "base", adapters[0]: "sql", adapters[1]: None}
    for name in ("compartmentId", "projectId", "displayName", "description", "versionLabel"):
        assert made[name] == body[name]
    assert (made["createType"], made["lifecycleState"]) == ("CREATE", "ACTIVE")
    assert (made["freeformTags"], made["definedTags"], made["systemTags"]) == ({"a": "b"}, {}, {})
    work = plane.json("GET", f"/workRequests/{answer.headers['opc-work-request-id']}")
    assert (work["operationType"], work["status"]) == ("MODEL_GROUP_CREATE", "SUCCEEDED")
    assert work["resources"][0]["identifier"] == made["id"]


def test_a_weight_of_a_member_is_kept_by_groups_and_clones_and_shown_if_it_is_one(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    body = stacked_body((adapters[0], "a"), (adapters[1], "b"))
    body["memberModelEntries"]["memberModelDetails"][1]["weight"] = 2.5
    made = plane.json("POST", "/modelGroups", body=body)
    clone = plane.json("POST", "/modelGroups", body=clone_body(made["id"], displayName="c"))
    for group in (made, clone):
        shown = group["memberModelEntries"]["memberModelDetails"]
        weights = {each["modelId"]: each.get("weight") for each in shown}
        assert weights == {BASE: None, adapters[0]: 2.5, adapters[1]: None}
    for wrong in (0, -1, 1e9):
        body["memberModelEntries"]["memberModelDetails"][1]["weight"] = wrong
        assert plane.json("POST", "/modelGroups", 400, body)["code"] == "InvalidParameter"


def test_experiments_are_metadata_that_clones_keep_and_faults_have_a_place(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    def body(text: str) -> dict[str, Any]:
        items = [{"key": "stacked.experiments", "value": text}]
        details = {"type": "STACKED", "baseModelId": BASE, "customMetadataList": items}
        return stacked_body((adapters[0], "a"), (adapters[1], "b"), modelGroupDetails=details)

    arms = [{"key": "a", "weight": 60}, {"key": "b", "weight": 40}]
    made = plane.json("POST", "/modelGroups", body=body(json.dumps([{"key": "sql", "arms": arms}])))
    clone = plane.json("POST", "/modelGroups", body=clone_body(made["id"], displayName="c"))
    assert clone["modelGroupDetails"] == made["modelGroupDetails"]
    patch = [{"operation": "REMOVE", "values": [{"modelId": adapters[1]}]}]
    without = clone_body(made["id"], displayName="c")
    without["modelGroupCloneSourceDetails"]["patchModelGroupMemberModelDetails"] = {"items": patch}
    place = "metadata stacked.experiments"
    for wrong, words in (
        (body("[{"), f"{place} is no JSON"),
        (body("7"), f"{place}: "),
        (body(json.dumps([{"key": "sql", "arms": [{"key": "c"}]}])), f"{place}.0.arms.0.key: "),
        (body(json.dumps([{"key": "a", "arms": [{"key": "b"}]}])), f"{place}.0.key: "),
        (without, f"{place}.0.arms.1.key: no model of the group has key 'b'"),
    ):
        refused = plane.json("POST", "/modelGroups", 400, wrong)
        assert refused["code"] == "InvalidParameter"
        assert words in refused["message"], refused


def test_a_name_is_made_and_metadata_is_an_empty_list(plane: Plane) -> None:
    made = make(plane, displayName=None)
    assert made["displayName"].startswith("modelgroup-")
    assert made["modelGroupDetails"]["customMetadataList"] == []
    assert made["memberModelEntries"]["memberModelDetails"] == [
        {"modelId": BASE, "inferenceKey": "base"}
    ]


def test_a_clone_takes_out_puts_in_and_moves_a_key(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    one, two, three = adapters
    source = make(plane, (one, "a"), (two, "b"), description="d", freeformTags={"x": "1"})
    body = clone_body(source["id"], insert((three, "a")), remove((one, None)), displayName="clone")
    made = plane.json("POST", "/modelGroups", body=body)
    assert members_of(made) == {BASE: "base", two: "b", three: "a"}
    assert (made["createType"], made["sourceModelGroupId"]) == ("CLONE", source["id"])
    assert (made["displayName"], made["description"]) == ("clone", "d")
    assert (made["freeformTags"], made["projectId"]) == ({"x": "1"}, "p")
    assert members_of(plane.json("GET", f"/modelGroups/{source['id']}")) == members_of(source)


def test_removing_by_key_leaves_the_models_other_keys(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    one = adapters[0]
    source = make(plane, (one, "a"), (one, "b"))
    made = plane.json("POST", "/modelGroups", body=clone_body(source["id"], remove((one, "a"))))
    assert members_of(made) == {BASE: "base", one: "b"}


def test_a_clone_of_a_history_is_its_next_version(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    line = plane.json("POST", "/modelGroupVersionHistory", body={"displayName": "line"})["id"]
    empty = clone_body(line, kind="MODEL_GROUP_VERSION_HISTORY")
    assert plane.json("POST", "/modelGroups", 409, empty)["code"] == "Conflict"
    first = make(plane, (adapters[0], "k"), modelGroupVersionHistoryId=line)
    assert (first["versionId"], first["modelGroupVersionHistoryName"]) == (1, "line")
    body = clone_body(line, insert((adapters[1], "l")), kind="MODEL_GROUP_VERSION_HISTORY")
    second = plane.json("POST", "/modelGroups", body=body)
    assert (second["versionId"], second["sourceModelGroupId"]) == (2, first["id"])
    history = plane.json("GET", f"/modelGroupVersionHistory/{line}")
    assert history["latestModelGroupId"] == second["id"]
    plane.ask("DELETE", f"/modelGroups/{second['id']}", 202)
    history = plane.json("GET", f"/modelGroupVersionHistory/{line}")
    assert history["latestModelGroupId"] == first["id"]


def test_groups_of_other_kinds_are_made_listed_and_cloned(
    plane: Plane,
) -> None:
    one, two = plane.onnx(b"1"), plane.onnx(b"2")
    for kind in ("HOMOGENEOUS", "HETEROGENEOUS"):
        made = plane.json("POST", "/modelGroups", body=other_kind(kind, (one, "a"), (two, "b")))
        assert made["modelGroupDetails"] == {"type": kind, "customMetadataList": []}
        body = clone_body(made["id"], remove((two, None)), displayName=kind)
        clone = plane.json("POST", "/modelGroups", body=body)
        assert members_of(clone) == {one: "a"}
        (row,) = plane.json("GET", f"/modelGroups?displayName={kind}")
        assert row["modelGroupDetails"]["type"] == kind


def wrong_groups(plane: Plane) -> dict[str, tuple[Any, int, str, str]]:
    """Bodies that are refused: status, code, and what is said."""
    one, two = plane.adapter(1), plane.adapter(2)
    off, empty = plane.adapter(3), plane.model()
    plane.json("POST", f"/models/{off}/actions/deactivate")
    place = write_base(plane.roots / "o", prefix="x.")
    items = [{"key": "source", "value": str(place)}]
    other = plane.json("POST", "/models", body={"customMetadataList": items})["id"]
    details = stacked_body((one, "k"))
    parameter, conflict = "InvalidParameter", "Conflict"

    def without(name: str) -> dict[str, Any]:
        return {key: value for key, value in details.items() if key != name}

    no_base = {"memberModelDetails": [{"modelId": one, "inferenceKey": "k"}]}
    stacked = {"type": "STACKED"}
    return {
        "no create type": (without("createType"), 400, "MissingParameter", "createType"),
        "another create type": (details | {"createType": "COPY"}, 400, parameter, "createType"),
        "no details": (without("modelGroupDetails"), 400, "MissingParameter", "modelGroupDetails"),
        "no members": (
            details | {"memberModelEntries": {}},
            400,
            "MissingParameter",
            "memberModelEntries.memberModelDetails",
        ),
        "another kind": (details | {"modelGroupDetails": {"type": "X"}}, 400, parameter, "type"),
        "no base named": (details | {"modelGroupDetails": stacked}, 400, parameter, "baseModelId"),
        "the base no member": (
            details | {"memberModelEntries": no_base},
            400,
            parameter,
            "must be a member",
        ),
        "the base twice": (stacked_body((BASE, "again")), 400, parameter, "2 times"),
        "an adapter as base": (stacked_body((two, "b"), base=one), 400, parameter, "kind adapter"),
        "two bases": (stacked_body((other, "b")), 400, parameter, "kind base"),
        "an adapter of another base": (
            stacked_body((one, "b"), base=other),
            400,
            parameter,
            "is an adapter of base",
        ),
        "one key twice": (stacked_body((one, "k"), (two, "k")), 400, parameter, "used twice"),
        "the base's key": (stacked_body((one, "base")), 400, parameter, "used twice"),
        "one model twice": (stacked_body((one, None), (one, None)), 400, parameter, "twice"),
        "a key too long": (stacked_body((one, "k" * 33)), 400, parameter, "at most 32"),
        "a key with a tab": (stacked_body((one, "a\tb")), 400, parameter, "inferenceKey"),
        "a key like an id": (stacked_body((one, BASE)), 400, parameter, "inferenceKey"),
        "no such model": (
            stacked_body((f"{BASE}-none", "k")),
            404,
            "NotAuthorizedOrNotFound",
            "is not there",
        ),
        "a model switched off": (stacked_body((off, "k")), 409, conflict, "INACTIVE"),
        "a model without artifact": (stacked_body((empty, "k")), 409, conflict, "no artifact yet"),
        "nothing in it": (other_kind("HETEROGENEOUS"), 400, parameter, "at least one"),
        "no such history": (
            stacked_body((one, "k"), modelGroupVersionHistoryId="h"),
            404,
            "NotAuthorizedOrNotFound",
            "version history",
        ),
        "a name too long": (details | {"displayName": "n" * 256}, 400, parameter, "displayName"),
        "a clone of nothing": (clone_body("none"), 404, "NotAuthorizedOrNotFound", "model group"),
        "a removal of what is not there": (
            clone_body(GROUP, remove((one, None))),
            400,
            parameter,
            "is not in the group",
        ),
        "a clone without its base": (
            clone_body(GROUP, remove((BASE, None)), insert((one, "k"))),
            400,
            parameter,
            "must be a member",
        ),
        "a clone of another kind": (
            clone_body(GROUP, modelGroupDetails={"type": "HOMOGENEOUS"}),
            400,
            parameter,
            "source's type",
        ),
        "a clone with another base": (
            clone_body(GROUP, modelGroupDetails={"type": "STACKED", "baseModelId": other}),
            400,
            parameter,
            "source's base",
        ),
        "a list": ([], 400, "CannotParseRequest", "JSON object"),
    }


def test_a_wrong_group_is_refused_by_place_and_nothing_is_left(plane: Plane) -> None:
    for name, (body, status, code, said) in wrong_groups(plane).items():
        error = plane.json("POST", "/modelGroups", status, body)
        assert set(error) == {"code", "message"}, name
        assert (error["code"], said in error["message"]) == (code, True), (name, error)
    assert [row["id"] for row in plane.json("GET", "/modelGroups")] == [GROUP]
    assert len(plane.json("GET", "/workRequests")) == 1


def test_500_fine_tunes_are_taken_and_501_are_not(plane: Plane) -> None:
    ids = [f"{BASE}{at:04}" for at in range(501)]
    plane.registry.models.put_all(
        [Model(id=id, kind="adapter", digest=f"sha256:{id}", base_model_id=BASE) for id in ids]
    )
    entries = [(id, f"k{at}") for at, id in enumerate(ids)]
    made = make(plane, *entries[:500])
    assert len(members_of(made)) == 501
    said = plane.json("POST", "/modelGroups", 400, stacked_body(*entries))
    assert "at most 500" in said["message"]
    page = plane.ask("GET", f"/modelGroups/{made['id']}/models?limit=500")
    assert (len(page.json()), "opc-next-page" in page.headers) == (500, True)


def test_an_adapter_that_was_checked_against_no_base_is_in_no_group(plane: Plane) -> None:
    unchecked = Model(id=f"{BASE}-old", kind="adapter", digest="sha256:" + "9" * 64)
    plane.registry.models.put(unchecked)
    said = plane.json("POST", "/modelGroups", 400, stacked_body((unchecked.id, "k")))
    assert "was not checked" in said["message"]


def test_an_update_changes_names_and_labels_alone(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    made = make(plane, (adapters[0], "k"), description="d")
    path = f"/modelGroups/{made['id']}"
    changed = plane.json(
        "PUT",
        path,
        body={
            "displayName": "new",
            "versionLabel": "v2",
            "definedTags": {"n": {"k": "v"}},
            "compartmentId": "ignored",
            "memberModelEntries": made["memberModelEntries"],
        },
    )
    assert (changed["displayName"], changed["versionLabel"]) == ("new", "v2")
    assert (changed["description"], changed["compartmentId"]) == ("d", "c")
    assert changed["definedTags"] == {"n": {"k": "v"}}
    assert changed["timeUpdated"] > made["timeUpdated"]
    others: list[dict[str, Any]] = [
        {"memberModelEntries": {"memberModelDetails": []}},
        {"modelGroupDetails": {"type": "HOMOGENEOUS"}},
        {"createType": "CLONE"},
    ]
    for other in others:
        said = plane.json("PUT", path, 400, other)
        assert "cannot be changed" in said["message"]
    assert plane.json("GET", path) == changed


def test_a_group_joins_a_history_and_leaves_none(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    lines = [
        plane.json("POST", "/modelGroupVersionHistory", body={"displayName": name})["id"]
        for name in ("one", "two")
    ]
    made = make(plane, (adapters[0], "k"))
    assert (made["versionId"], made["modelGroupVersionHistoryId"]) == (None, None)
    path = f"/modelGroups/{made['id']}"
    joined = plane.json("PUT", path, body={"modelGroupVersionHistoryId": lines[0]})
    assert (joined["versionId"], joined["modelGroupVersionHistoryName"]) == (1, "one")
    said = plane.json("PUT", path, 409, {"modelGroupVersionHistoryId": lines[1]})
    assert said["code"] == "Conflict"


def test_a_group_is_switched_off_and_on_and_tells_work_each_time(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    path = f"/modelGroups/{make(plane, (adapters[0], 'k'))['id']}"
    for action, state in (("deactivate", "INACTIVE"), ("activate", "ACTIVE")):
        answer = plane.ask("POST", f"{path}/actions/{action}")
        assert answer.json()["lifecycleState"] == state
        work = plane.json("GET", f"/workRequests/{answer.headers['opc-work-request-id']}")
        assert (work["operationType"], work["status"]) == ("MODEL_GROUP_UPDATE", "SUCCEEDED")
        assert plane.json("POST", f"{path}/actions/{action}", 409)["code"] == "Conflict"


def test_a_deleted_group_can_be_read_and_nothing_else(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    made = make(plane, (adapters[0], "k"))
    path = f"/modelGroups/{made['id']}"
    answer = plane.ask("DELETE", path, 202)
    assert answer.content == b""
    work = plane.json("GET", f"/workRequests/{answer.headers['opc-work-request-id']}")
    assert (work["operationType"], work["percentComplete"]) == ("MODEL_GROUP_DELETE", 100.0)
    gone = plane.json("GET", path)
    assert (gone["lifecycleState"], members_of(gone)) == ("DELETED", members_of(made))
    assert plane.json("DELETE", path, 404)["code"] == "NotAuthorizedOrNotFound"
    assert plane.json("PUT", path, 404, {"displayName": "x"})["code"]
    assert plane.json("POST", f"{path}/actions/activate", 404)["code"]
    assert plane.json("POST", "/modelGroups", 409, clone_body(made["id"]))["code"] == "Conflict"
    assert [row["id"] for row in plane.json("GET", "/modelGroups?lifecycleState=DELETED")] == [
        made["id"]
    ]


def test_the_served_group_cannot_be_deleted_or_switched_off(plane: Plane) -> None:
    for method, path in (("DELETE", ""), ("POST", "/actions/deactivate")):
        said = plane.json(method, f"/modelGroups/{GROUP}{path}", 409)
        assert said["code"] == "Conflict"
        assert "serves" in said["message"]


def test_groups_are_listed_by_every_filter_without_their_members(plane: Plane) -> None:
    line = plane.json("POST", "/modelGroupVersionHistory", body={"displayName": "line"})["id"]
    one = make(plane, displayName="one", projectId="q", modelGroupVersionHistoryId=line)["id"]
    off = make(plane, displayName="off")["id"]
    plane.json("POST", f"/modelGroups/{off}/actions/deactivate")
    by = GroupRecord(
        id=f"{GROUP}2", base_model_id=BASE, members=(GroupMember(BASE),), created_by="me"
    )
    plane.registry.groups.create(by)

    def ids(query: str) -> list[str]:
        rows = plane.json("GET", f"/modelGroups?compartmentId=c&{query}")
        assert all("memberModelEntries" not in row for row in rows)
        assert all(row["modelGroupDetails"]["type"] == "STACKED" for row in rows)
        return [row["id"] for row in rows]

    assert ids("displayName=one") == ids("projectId=q") == [one]
    assert ids(f"modelGroupVersionHistoryId={line}") == ids(f"id={one}") == [one]
    assert ids("lifecycleState=INACTIVE") == [off]
    assert ids("createdBy=me") == [by.id]
    assert ids("") == [by.id, off, one, GROUP]
    assert ids("sortBy=displayName&limit=2") == [by.id, off]
    assert ids("sortBy=lifecycleState&sortOrder=DESC&limit=1") == [off]


def test_the_models_of_a_group_are_listed_by_every_filter(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    one, two, three = adapters
    made = make(plane, (one, "a"), (two, "b"), (three, None))
    plane.json("POST", f"/models/{two}/actions/deactivate")

    def ids(query: str) -> list[str]:
        rows = plane.json("GET", f"/modelGroups/{made['id']}/models?compartmentId=c&{query}")
        return [row["modelId"] for row in rows]

    assert ids("sortBy=displayName") == [one, two, three, BASE]
    assert ids(f"id={one}") == ids("displayName=adapter%201") == ids("inferenceKey=a") == [one]
    assert ids("lifecycleState=INACTIVE") == [two]
    assert ids("createdBy=nobody") == []
    rows = plane.json("GET", f"/modelGroups/{made['id']}/models")
    assert {row["modelId"]: row["inferenceKey"] for row in rows} == members_of(made)
    assert all(row["isModelByReference"] is (row["id"] == BASE) for row in rows)
    assert plane.json("GET", "/modelGroups/none/models", 404)["code"]


def test_a_homogeneous_group_has_one_artifact_and_others_have_none(tmp_path: Path) -> None:
    with control_plane(tmp_path, code=True) as plane:
        body = other_kind("HOMOGENEOUS", (plane.onnx(), "a"))
        path = f"/modelGroups/{plane.json('POST', '/modelGroups', body=body)['id']}/artifact"
        plane.ask("GET", f"{path}/content", 404)
        code = archive_of(**{"g/score.py": b"1", "g/runtime.yaml": b""})
        assert plane.ask("POST", path, 204, code).headers["etag"]
        assert plane.ask("GET", f"{path}/content").content == code
        assert plane.ask("HEAD", f"{path}/content").headers["content-length"] == str(len(code))
        plane.ask("POST", path, 204, code)
        other = archive_of(**{"score.py": b"2"})
        assert plane.json("POST", path, 409, other)["code"] == "Conflict"
        for group in (make(plane)["id"], plane_group(plane, "HETEROGENEOUS")):
            refused = plane.json("POST", f"/modelGroups/{group}/artifact", 409, code)
            assert refused["code"] == "Conflict"
        plane.ask("DELETE", path.removesuffix("/artifact"), 202)
        plane.ask("GET", f"{path}/content", 404)
        assert len(plane.stored()) == 1, "the model's own"


@pytest.mark.parametrize(
    ("files", "status", "code", "said"),
    [
        ({"score.py": b""}, 403, "NotAllowed", "models.code: true"),
        ({"runtime.yaml": b""}, 400, "ArchiveInvalid", "has no score.py"),
        ({"a/b/score.py": b"", "c": b""}, 400, "ArchiveInvalid", "has no score.py"),
        ({"score.py": b"", "../x": b""}, 400, "PathUnsafe", "leads out"),
        ({"score.py": b"", "runtime.yaml": b"- x"}, 400, "InvalidParameter", "INFERENCE_ENV_SLUG"),
        (
            {"score.py": b"", "runtime.yaml": ENVIRONMENT.replace(b"@", b"pyt_p39")},
            400,
            "InvalidParameter",
            "'pyt_p39' is not here (known: 'here')",
        ),
    ],
)
def test_an_artifact_that_is_no_code_of_a_group_is_refused(
    tmp_path: Path, files: dict[str, bytes], status: int, code: str, said: str
) -> None:
    with control_plane(tmp_path, code=status != 403) as plane:
        path = f"/modelGroups/{plane_group(plane, 'HOMOGENEOUS')}/artifact"
        refused = plane.json("POST", path, status, archive_of(**files))
        assert refused["code"] == code
        assert said in refused["message"]
        plane.ask("GET", f"{path}/content", 404)
        assert plane.arriving() == []
        if status == 403:
            return
        named = {"score.py": b"", "runtime.yaml": ENVIRONMENT.replace(b"@", b"here")}
        plane.ask("POST", path, 204, archive_of(**named))


def plane_group(plane: Plane, kind: str) -> str:
    """A group of one model of another kind; its id."""
    body = other_kind(kind, (plane.onnx(), "a"))
    return str(plane.json("POST", "/modelGroups", body=body)["id"])


def test_content_of_a_model_does_not_change_while_a_group_has_it(
    plane: Plane, adapters: tuple[str, str, str]
) -> None:
    made = make(plane, (adapters[0], "k"))
    path = f"/models/{adapters[0]}/artifact"
    said = plane.json("POST", path, 409, packed(plane.roots, 9))
    assert (said["code"], made["id"] in said["message"]) == ("Conflict", True)
    plane.ask("POST", path, 204, packed(plane.roots, 1, "folder/"))
    plane.ask("DELETE", f"/modelGroups/{made['id']}", 202)
    plane.ask("POST", path, 204, packed(plane.roots, 9))
    assert plane.registry.models.get(adapters[0]).state is ModelState.ACTIVE
