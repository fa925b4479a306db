"""What clients look up before they deploy: containers, shapes, projects, compute targets."""

from __future__ import annotations

from pathlib import Path

from tests.api.control.plane import Plane, control_plane


def test_shapes_have_the_names_of_the_configuration(tmp_path: Path) -> None:
    with control_plane(tmp_path, shape_names=("VM.GPU.A10.1", "MINE", "LOCAL")) as plane:
        rows = plane.json("GET", "/modelDeploymentShapes")
        assert [row["name"] for row in rows] == ["LOCAL", "VM.GPU.A10.1", "MINE"]


def test_pages_follow_one_another(plane: Plane) -> None:
    whole = [row["name"] for row in plane.json("GET", "/modelDeploymentShapes")]
    seen: list[str] = []
    page: str | None = "0"
    while page is not None:
        answer = plane.ask("GET", f"/modelDeploymentShapes?limit=2&page={page}")
        seen += [row["name"] for row in answer.json()]
        page = answer.headers.get("opc-next-page")
    assert seen == whole
    for wrong in ("limit=0", "limit=1001", "page=-1", "page=99999999999", "page=x", "page=²"):
        refused = plane.json("GET", f"/modelDeploymentShapes?{wrong}", 400)
        assert refused["code"] == "InvalidParameter", wrong


def test_containers_are_filtered(plane: Plane) -> None:
    def families(query: str) -> list[str]:
        return [row["familyName"] for row in plane.json("GET", f"/containers?{query}")]

    every = families("")
    assert every[0] == "odsc-vllm-serving"
    assert len(every) == 4
    for query in ("isLatest=true", "usageQueryParam=INFERENCE", "targetWorkload=MODEL_DEPLOYMENT"):
        assert families(query) == every
    for query in ("isLatest=false", "usageQueryParam=FINE_TUNE", "lifecycleState=INACTIVE"):
        assert families(query) == []
    assert families("containerName=odsc-vllm-serving-v1") == ["odsc-vllm-serving-v1"]
    assert plane.json("GET", "/containers?usageQueryParam=x", 400)["code"] == "InvalidParameter"


def test_there_are_no_projects_and_no_compute_targets(plane: Plane) -> None:
    """A server is one project and one machine; clients look, and go on."""
    assert plane.json("GET", "/projects?compartmentId=c&lifecycleState=ACTIVE") == []
    assert plane.json("GET", "/computeTargets?compartmentId=c") == []
