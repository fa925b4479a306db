"""What Terraform's provider waits for: a work request that names the resource in its own words."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.control.plane import Plane, stacked_body


def waited(plane: Plane, answer: httpx.Response, entity: str, action: str) -> str:
    """The id that the provider reads: of the first resource whose entity type contains `entity`."""
    work = plane.json("GET", f"/workRequests/{answer.headers['opc-work-request-id']}")
    assert work["status"] == "SUCCEEDED"
    assert work["timeFinished"] is not None
    found: list[dict[str, Any]] = [
        each
        for each in work["resources"]
        if entity in each["entityType"].lower() and each["actionType"] == action
    ]
    return str(found[0]["identifier"])


def test_groups(plane: Plane) -> None:
    made = plane.ask("POST", "/modelGroups", body=stacked_body())
    id = made.json()["id"]
    assert waited(plane, made, "model-group", "CREATED") == id
    gone = plane.ask("DELETE", f"/modelGroups/{id}", 202)
    assert waited(plane, gone, "model-group", "DELETED") == id


def test_version_histories(plane: Plane) -> None:
    id = plane.json("POST", "/modelGroupVersionHistory", body={"displayName": "line"})["id"]
    gone = plane.ask("DELETE", f"/modelGroupVersionHistory/{id}", 202)
    assert waited(plane, gone, "modelgroupversionhistory", "DELETED") == id


def test_version_sets_of_models(plane: Plane) -> None:
    id = plane.json("POST", "/modelVersionSets", body={"name": "line"})["id"]
    body = {"compartmentId": "d"}
    moved = plane.ask("POST", f"/modelVersionSets/{id}/actions/changeCompartment", 204, body)
    assert waited(plane, moved, "modelversionset", "UPDATED") == id
    gone = plane.ask("DELETE", f"/modelVersionSets/{id}", 202)
    assert waited(plane, gone, "modelversionset", "DELETED") == id
