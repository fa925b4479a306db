"""Version sets of models over HTTP, and the models that are versions of them."""

from __future__ import annotations

from typing import Any

from tests.api.control.plane import BASE, Plane

ALL = "/modelVersionSets"


def make(plane: Plane, name: str = "line", **more: Any) -> Any:
    return plane.json("POST", ALL, body={"name": name, "projectId": "p", **more})


def test_a_set_is_read_as_it_was_made(plane: Plane) -> None:
    made = make(plane, description="d", freeformTags={"a": "b"})
    assert made["id"].startswith("ocid1.datasciencemodelversionset.")
    assert made == plane.json("GET", f"{ALL}/{made['id']}")
    assert (made["name"], made["lifecycleState"], made["category"]) == ("line", "ACTIVE", "USER")
    assert make(plane, "other")["id"] != made["id"]
    assert plane.json("POST", ALL, 409, {"name": "line"})["code"] == "Conflict"
    assert plane.json("POST", ALL, 400, {})["code"] == "MissingParameter"
    assert "displayName" not in made


def test_a_model_joins_a_set_when_it_is_made_or_later_and_stays_in_it(plane: Plane) -> None:
    line, other = make(plane)["id"], make(plane, "other")["id"]
    first = plane.model(modelVersionSetId=line)
    second = plane.model()
    joined = plane.json("PUT", f"/models/{second}", body={"modelVersionSetId": line})
    assert (joined["modelVersionSetName"], joined["versionId"]) == ("line", 2)
    again = plane.json("PUT", f"/models/{second}", body={"modelVersionSetId": line})
    assert again["versionId"] == 2
    moved = {"modelVersionSetId": other}
    assert plane.json("PUT", f"/models/{second}", 409, moved)["code"] == "Conflict"
    plane.ask("DELETE", f"/models/{second}", 204)
    third = plane.json("GET", f"/models/{plane.model(modelVersionSetId=line)}")
    assert third["versionId"] == 3, "a version is given once"
    rows = plane.json("GET", "/models?modelVersionSetName=line&sortOrder=ASC")
    assert [(row["id"], row["versionId"]) for row in rows] == [
        (first, 1),
        (second, 2),
        (third["id"], 3),
    ]
    for wrong in ("ocid1.none", BASE):
        body = {"displayName": "m", "modelVersionSetId": wrong}
        assert plane.json("POST", "/models", 404, body)["code"] == "NotAuthorizedOrNotFound"
    assert len(plane.json("GET", "/models?displayName=m")) == 3, "nothing is left of what failed"


def test_sets_are_listed_by_every_filter(plane: Plane) -> None:
    one, two = make(plane, "one")["id"], make(plane, "two", projectId="q")["id"]
    plane.ask("DELETE", f"{ALL}/{one}", 202)

    def ids(query: str) -> list[str]:
        return [row["id"] for row in plane.json("GET", f"{ALL}?compartmentId=c&{query}")]

    assert ids("name=one") == ids("lifecycleState=DELETED") == ids(f"id={one}") == [one]
    assert ids("projectId=q") == [two]
    assert ids("createdBy=nobody") == ids("category=SERVICE") == []
    assert ids("category=USER") == ids("") == [two, one]
    assert ids("sortBy=name&sortOrder=ASC") == [one, two]
    assert plane.json("GET", f"{ALL}?sortBy=displayName", 400)["code"] == "InvalidParameter"


def test_a_set_is_deleted_when_its_models_are(plane: Plane) -> None:
    line = make(plane)["id"]
    model = plane.model(modelVersionSetId=line)
    refused = plane.json("DELETE", f"{ALL}/{line}", 409)
    assert (refused["code"], model in refused["message"]) == ("Conflict", True)
    plane.ask("DELETE", f"{ALL}/{line}?isDeleteRelatedModels=true", 202)
    for path in (f"{ALL}/{line}", f"/models/{model}"):
        assert plane.json("GET", path)["lifecycleState"] == "DELETED"
    assert plane.json("DELETE", f"{ALL}/{line}", 404)["code"] == "NotAuthorizedOrNotFound"
    body = {"displayName": "m", "modelVersionSetId": line}
    assert plane.json("POST", "/models", 404, body)["code"] == "NotAuthorizedOrNotFound"
    assert make(plane)["id"] != line, "its name is free again"
