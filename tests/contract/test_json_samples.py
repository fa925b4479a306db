"""The seeds' own REST samples, as plain JSON, on a server that has the real engine."""

from __future__ import annotations

from typing import Any

import oci
import pytest

from tests.conftest import PROMPT
from tests.contract.world import OVER, WAIT, C, P, World, seed_deployment

pytestmark = pytest.mark.engine


def test_the_seeds_rest_samples_work_as_json(world: World) -> None:
    """The sample group, the LIVE payload with all that it sends along, headers, and states."""
    id = world.deployment()
    entries = {"base": world.base, "key1": world.adapters["a"], "key2": world.adapters["c"]}
    group = {
        "createType": "CREATE",
        "compartmentId": C,
        "projectId": P,
        "modelGroupDetails": {"type": "STACKED", "baseModelId": world.base},
        "memberModelEntries": {
            "memberModelDetails": [
                {"inferenceKey": key, "modelId": model} for key, model in entries.items()
            ]
        },
    }
    made = world.raw("POST", f"/20190101/modelGroups?compartmentId={C}", json=group)
    assert made.status_code == 200, made.text
    live = seed_deployment(made.json()["id"], updateType="LIVE")
    live["displayName"] = "MMS Model Group Deployment - Test"
    answer = world.raw("PUT", f"/20190101/modelDeployments/{id}", json=live)
    assert (answer.status_code, answer.content) == (202, b"")
    follow(world, answer.headers["opc-work-request-id"])
    for header in ({"model-key": "key1"}, {"model-ocid": entries["key1"]}):
        sent = {"opc-request-id": "test-id", **header}
        body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
        got = world.raw("POST", f"/{id}/predict", json=body, headers=sent)
        assert got.status_code == 200, got.text
        assert (got.headers["model-key"], got.headers["opc-request-id"]) == ("key1", "test-id")
    for path in ("models/modelState", "modelStates"):
        rows = world.raw("GET", f"/20190101/modelDeployments/{id}/{path}").json()
        assert {row["modelId"]: row["state"] for row in rows} == dict.fromkeys(
            entries.values(), "SUCCESS"
        )


def follow(world: World, work_id: str) -> None:
    first = world.control.get_work_request(work_id)

    def over(answer: Any) -> bool:
        return answer.data.status in OVER

    done = oci.wait_until(world.control, first, evaluate_response=over, **WAIT).data
    assert done.status == "SUCCEEDED", world.told(work_id)
