"""What all resources share: bodies of any content type, null fields, and which error is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.control.plane import GROUP, Plane, stacked_body

HISTORIES = "/modelGroupVersionHistory"


@pytest.mark.parametrize(
    "kind",
    [None, "application/json", "text/plain", "application/x-www-form-urlencoded", "?", "a/b"],
)
def test_a_body_is_json_whatever_its_content_type_says(plane: Plane, kind: str | None) -> None:
    headers = {} if kind is None else {"content_type": kind}
    body = json.dumps({"displayName": "line"}).encode()
    made = plane.ask("POST", HISTORIES, 200, body, **headers).json()
    assert made["displayName"] == "line"


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"null", b'{"displayName": NaN}', b"\xff"])
def test_what_is_no_object_cannot_be_parsed(plane: Plane, sent: bytes) -> None:
    said = plane.ask("POST", HISTORIES, 400, sent).json()
    assert said["code"] == "CannotParseRequest"


def test_a_name_of_a_field_is_as_oci_spells_it(plane: Plane) -> None:
    said = plane.json("POST", HISTORIES, 400, {"display_name": "line"})
    assert said == {"code": "MissingParameter", "message": "displayName is missing"}


WRONG: list[tuple[Any, str, str]] = [
    ({}, "MissingParameter", "createType is missing"),
    ({"createType": "COPY"}, "InvalidParameter", "createType"),
    ({"createType": "CREATE", "description": "x" * 401}, "MissingParameter", "modelGroupDetails"),
    ({"createType": "CLONE"}, "MissingParameter", "modelGroupCloneSourceDetails is missing"),
    (stacked_body(description="x" * 401), "InvalidParameter", "description: "),
    (stacked_body(("m", "k" * 33)), "InvalidParameter", "memberModelDetails[1]."),
]


@pytest.mark.parametrize(("body", "code", "place"), WRONG)
def test_the_first_fault_is_told_with_its_place(
    plane: Plane, body: Any, code: str, place: str
) -> None:
    said = plane.json("POST", "/modelGroups", 400, body)
    assert said["code"] == code
    assert place in said["message"]
    assert "CREATE." not in said["message"]


@pytest.mark.parametrize("etag", ["*", '"{}"', "{}"])
def test_an_etag_matches_with_and_without_quotes(plane: Plane, etag: str) -> None:
    now = plane.ask("GET", f"/modelGroups/{GROUP}").headers["etag"]
    body = {"description": "newer"}
    plane.ask("PUT", f"/modelGroups/{GROUP}", 200, body, if_match=etag.format(now))


def test_what_makes_a_group_may_be_sent_as_it_is_and_nothing_else(plane: Plane) -> None:
    group = plane.json("GET", f"/modelGroups/{GROUP}")
    assert plane.json("PUT", f"/modelGroups/{GROUP}", body=group)["id"] == GROUP
    (member,) = group["memberModelEntries"]["memberModelDetails"]
    without_null = {"modelId": member["modelId"], "inferenceKey": "base"}
    same = {"memberModelEntries": {"memberModelDetails": [without_null]}}
    plane.json("PUT", f"/modelGroups/{GROUP}", body=same)
    other = {"memberModelEntries": {"memberModelDetails": [{**without_null, "inferenceKey": "b"}]}}
    said = plane.json("PUT", f"/modelGroups/{GROUP}", 400, other)
    assert "memberModelEntries" in said["message"]
    said = plane.json("PUT", f"/modelGroups/{GROUP}", 400, {"createType": "CLONE", "versionId": 7})
    assert "createType, versionId" in said["message"]


WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"description": "x"}),
    ("POST", "/actions/deactivate", None),
    ("POST", "/actions/activate", None),
    ("POST", "/actions/changeCompartment", {"compartmentId": "moved"}),
    ("DELETE", "", None),
]
MADE: dict[str, Any] = {
    "/modelGroups": stacked_body(),
    "/modelGroupVersionHistory": {"displayName": "line"},
    "/modelVersionSets": {"name": "line"},
}


@pytest.mark.parametrize("collection", MADE)
def test_a_write_is_done_for_the_present_state_alone(plane: Plane, collection: str) -> None:
    path = f"{collection}/{plane.json('POST', collection, body=MADE[collection])['id']}"
    etag = plane.ask("GET", path).headers["etag"]
    for method, more, body in WRITES:
        if "activate" in more and collection != "/modelGroups":
            continue
        stale = plane.ask(method, path + more, 412, body, if_match="another")
        assert stale.json()["code"] == "NoEtagMatch"
        answer = plane.http.request(
            method, f"/20190101{path}{more}", json=body, headers={"if-match": etag}
        )
        assert answer.is_success, answer.text
        before, etag = etag, plane.ask("GET", path).headers["etag"]
        assert etag != before
    assert plane.json("GET", path)["compartmentId"] == "moved"
