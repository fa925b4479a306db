"""Version histories on the wire."""

from __future__ import annotations

from typing import Any

from tests.api.control.plane import GROUP, Plane, stacked_body

ALL = "/modelGroupVersionHistory"


def make(plane: Plane, name: str = "line", **more: Any) -> Any:
    given = {"compartmentId": "c", "projectId": "p", "displayName": name}
    return plane.json("POST", ALL, body={**given, **more})


def test_a_history_is_made_and_read_as_it_was_given(plane: Plane) -> None:
    made = make(plane, description="d", freeformTags={"a": "b"})
    assert made["id"].startswith("ocid1.datasciencemodelgroupversionhistory.")
    assert made == plane.json("GET", f"{ALL}/{made['id']}")
    assert (made["displayName"], made["description"], made["projectId"]) == ("line", "d", "p")
    assert (made["latestModelGroupId"], made["lifecycleState"]) == (None, "ACTIVE")
    (row,) = plane.json("GET", ALL)
    assert row == {key: value for key, value in made.items() if key != "description"}


def test_a_name_is_needed_and_is_one_histories(plane: Plane) -> None:
    assert plane.json("POST", ALL, 400, {})["code"] == "MissingParameter"
    first = make(plane)
    assert plane.json("POST", ALL, 409, {"displayName": "line"})["code"] == "Conflict"
    second = make(plane, "other")
    path = f"{ALL}/{second['id']}"
    assert plane.json("PUT", path, 409, {"displayName": "line"})["code"] == "Conflict"
    plane.ask("DELETE", f"{ALL}/{first['id']}", 202)
    assert plane.json("PUT", path, body={"displayName": "line"})["displayName"] == "line"


def test_a_history_can_begin_with_a_group(plane: Plane) -> None:
    made = make(plane, latestModelGroupId=GROUP)
    assert made["latestModelGroupId"] == GROUP
    assert plane.json("GET", f"/modelGroups/{GROUP}")["versionId"] == 1
    again = {"displayName": "second", "latestModelGroupId": GROUP}
    assert plane.json("POST", ALL, 409, again)["code"] == "Conflict"
    assert len(plane.json("GET", ALL)) == 1
    none = {"displayName": "third", "latestModelGroupId": "none"}
    assert plane.json("POST", ALL, 404, none)["code"] == "NotAuthorizedOrNotFound"


def test_the_latest_is_a_group_of_the_history(plane: Plane) -> None:
    line = make(plane)["id"]
    groups = [
        plane.json("POST", "/modelGroups", body=stacked_body(modelGroupVersionHistoryId=line))
        for _ in range(3)
    ]
    assert [group["versionId"] for group in groups] == [1, 2, 3]
    path = f"{ALL}/{line}"
    assert plane.json("GET", path)["latestModelGroupId"] == groups[2]["id"]
    back = plane.json("PUT", path, body={"latestModelGroupId": groups[0]["id"]})
    assert back["latestModelGroupId"] == groups[0]["id"]
    other = {"displayName": "other", "latestModelGroupId": GROUP}
    plane.json("POST", ALL, body=other)
    stranger = {"latestModelGroupId": GROUP}
    assert plane.json("PUT", path, 409, stranger)["code"] == "Conflict"
    plane.ask("DELETE", f"/modelGroups/{groups[1]['id']}", 202)
    deleted = {"latestModelGroupId": groups[1]["id"]}
    assert plane.json("PUT", path, 404, deleted)["code"] == "NotAuthorizedOrNotFound"
    for group, left in ((groups[0], groups[2]["id"]), (groups[2], None)):
        plane.ask("DELETE", f"/modelGroups/{group['id']}", 202)
        assert plane.json("GET", path)["latestModelGroupId"] == left


def test_a_group_that_was_made_outside_becomes_the_latest(plane: Plane) -> None:
    """Oracle's notebook makes a group, then tells the history."""
    path = f"{ALL}/{make(plane)['id']}"
    group = plane.json("POST", "/modelGroups", body=stacked_body())["id"]
    changed = plane.json("PUT", path, body={"latestModelGroupId": group})
    assert changed["latestModelGroupId"] == group
    shown = plane.json("GET", f"/modelGroups/{group}")
    assert (shown["modelGroupVersionHistoryName"], shown["versionId"]) == ("line", 1)


def test_a_deleted_history_can_be_read_and_nothing_else(plane: Plane) -> None:
    line = make(plane)["id"]
    group = plane.json("POST", "/modelGroups", body=stacked_body(modelGroupVersionHistoryId=line))
    path = f"{ALL}/{line}"
    answer = plane.ask("DELETE", path, 202)
    work = plane.json("GET", f"/workRequests/{answer.headers['opc-work-request-id']}")
    assert work["operationType"] == "MODEL_GROUP_VERSION_HISTORY_DELETE"
    assert work["status"] == "SUCCEEDED"
    assert plane.json("GET", path)["lifecycleState"] == "DELETED"
    assert plane.json("GET", f"/modelGroups/{group['id']}")["lifecycleState"] == "ACTIVE"
    assert plane.json("DELETE", path, 404)["code"] == "NotAuthorizedOrNotFound"
    assert plane.json("PUT", path, 404, {"description": "x"})["code"]
    joins = stacked_body(modelGroupVersionHistoryId=line)
    assert plane.json("POST", "/modelGroups", 409, joins)["code"] == "Conflict"


def test_histories_are_listed_by_every_filter(plane: Plane) -> None:
    one, two = make(plane, "one")["id"], make(plane, "two", projectId="q")["id"]
    plane.ask("DELETE", f"{ALL}/{one}", 202)

    def ids(query: str) -> list[str]:
        return [row["id"] for row in plane.json("GET", f"{ALL}?compartmentId=c&{query}")]

    assert ids("displayName=one") == ids("lifecycleState=DELETED") == ids(f"id={one}") == [one]
    assert ids("projectId=q") == [two]
    assert ids("createdBy=nobody") == []
    assert ids("sortBy=displayName") == [one, two]
    assert ids("") == [two, one]
    assert plane.json("GET", f"{ALL}?lifecycleState=CREATING", 400)["code"] == "InvalidParameter"
