"""How long lists take: 10,000 models, and a group of 500 members. Not a test; prints a table.

    python -m tests.contract.speed [--rows 10000] [--calls 50]

A whole server over HTTP on this machine, without an engine, asked by one client.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from stacked.registry import (
    DeployedMember,
    Deployment,
    GroupMember,
    GroupRecord,
    MemberState,
    Model,
)
from tests.api.control.plane import stacked_body
from tests.contract.rig import Rig, rig
from tests.models.remote import PREFIX

BASE = "ocid1.datasciencemodel.oc1..base"
GROUP = "ocid1.datasciencemodelgroup.oc1..big"
DEPLOYMENT = "ocid1.datasciencemodeldeployment.oc1..big"
MEMBERS = 500


def model_id(number: int) -> str:
    return f"ocid1.datasciencemodel.oc1..m{number}"


def fill(running: Rig, rows: int) -> None:
    registry = running.service.registry
    registry.models.put(Model(id=BASE, kind="base", digest="sha256:b", display_name="base"))
    for number in range(rows - 1):
        registry.models.put(
            Model(
                id=model_id(number),
                kind="adapter",
                digest=f"sha256:{number:064x}",
                display_name=f"model {number % 1000}",
                project_id=f"project {number % 10}",
                rank=8,
                base_model_id=BASE,
            )
        )
    members = [GroupMember(BASE, "base")]
    members += [GroupMember(model_id(number), f"key{number}") for number in range(MEMBERS)]
    registry.groups.create(
        GroupRecord(id=GROUP, display_name="big", base_model_id=BASE, members=tuple(members))
    )
    registry.deployments.create(Deployment(id=DEPLOYMENT, display_name="big"))
    states = [
        DeployedMember(model_id=m.model_id, key=m.key, state=MemberState.SUCCESS) for m in members
    ]
    registry.deployments.put_members(DEPLOYMENT, GROUP, states)
    work = registry.work_requests.open("MODEL_DEPLOYMENT_CREATE")
    registry.work_requests.advance(work.id, 10)
    registry.deployments.commit(DEPLOYMENT, GROUP, 1, work.id)
    registry.work_requests.succeed(work.id)


def reads(running: Rig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    models, members = "/models", f"/modelGroups/{GROUP}/models"
    states = f"/modelDeployments/{DEPLOYMENT}/models/modelState"
    yield "models, first page of 100", models, {}
    yield "models, page of 100 in the middle", models, {"page": middle(running)}
    yield "models by name (10 rows)", models, {"displayName": "model 7"}
    yield (
        "models of a project, by displayName",
        models,
        {"projectId": "project 3", "sortBy": "displayName"},
    )
    yield "models in a state that none has", models, {"lifecycleState": "FAILED"}
    yield "models, page of 1,000", models, {"limit": 1000}
    yield "one model", f"{models}/{model_id(77)}", {}
    yield "group of 500, whole", f"/modelGroups/{GROUP}", {}
    yield "its members, first page of 100", members, {}
    yield "its members by key", members, {"inferenceKey": "key77"}
    yield "model states, first page of 100", states, {}
    yield "model states by key", states, {"inferenceKey": "key77"}


def middle(running: Rig) -> str:
    """The token of a page half way."""
    page = running.http.get(f"{PREFIX}/models", params={"limit": 1000})
    for _ in range(4):
        token = page.headers["opc-next-page"]
        page = running.http.get(f"{PREFIX}/models", params={"limit": 1000, "page": token})
    return page.headers["opc-next-page"]


def timed(running: Rig, path: str, params: dict[str, Any], calls: int) -> tuple[float, float, int]:
    """Median and longest in ms, and the size of an answer in bytes."""
    took, size = [], 0
    for _ in range(calls):
        began = time.perf_counter()
        answer = running.http.get(PREFIX + path, params=params)
        took.append(1000 * (time.perf_counter() - began))
        answer.raise_for_status()
        size = len(answer.content)
    return median(took), max(took), size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, rig(Path(place)) as running:
        fill(running, given.rows)
        print("| Call | median ms | longest ms | KiB |\n| --- | ---: | ---: | ---: |")
        for told, path, params in reads(running):
            middle_ms, longest, size = timed(running, path, params, given.calls)
            print(f"| {told} | {middle_ms:.1f} | {longest:.1f} | {size / 1024:.0f} |")
        entries = [(model_id(number), f"key{number}") for number in range(MEMBERS)]
        body = stacked_body(*entries, base=BASE)
        took = []
        for _ in range(5):
            began = time.perf_counter()
            running.ask("POST", "/modelGroups", body)
            took.append(1000 * (time.perf_counter() - began))
        print(f"| making a group of 500 | {median(took):.1f} | {max(took):.1f} | |")


if __name__ == "__main__":
    main()
