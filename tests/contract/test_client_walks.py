"""Walks of OCI's clients, call by call, as they were recorded from the real ones.

`recorded/` has what was sent and the status of each answer, with names in the place of ids;
`clients/` the scripts that were run. Engines are doubles here; see `test_real_clients.py` for the
clients themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.control.plane import archive_of, packed, zipped
from tests.contract.rig import Rig, rig
from tests.store.small import write_base
from tests.waiting import until

RECORDED = Path(__file__).parent / "recorded"
C, P = "ocid1.compartment.oc1..c", "ocid1.datascienceproject.oc1..p"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as running:
        yield running


class Replay:
    """One walk. `ids` are the ids by the names that stand for them, `answers` all that came."""

    def __init__(self, server: Rig, uploads: dict[str, bytes]) -> None:
        self.ids: dict[str, str] = {}
        self.answers: list[httpx.Response] = []
        self._server = server
        self._uploads = uploads

    def step(self, step: dict[str, Any]) -> httpx.Response:
        """Make one call; whatever ran on the deployment is over before it is changed again."""
        method, _, target = self._filled(step["call"]).partition(" ")
        if method != "GET" and "modeldeployment1" in self.ids:
            until(lambda: self.state() not in ("CREATING", "UPDATING"))
        content: bytes | str | None = self._uploads.get(step.get("upload", ""))
        if "body" in step:
            content = self._filled(json.dumps(step["body"]))
        headers = {"content-type": "application/json"}
        answer = self._server.http.request(method, target, content=content, headers=headers)
        assert answer.status_code == step["status"], f"{step['call']}: {answer.text}"
        if "gives" in step:
            self.ids[step["gives"]] = answer.json()["id"]
        if "opc-work-request-id" in answer.headers:
            self.ids["work"] = answer.headers["opc-work-request-id"]
        self.answers.append(answer)
        return answer

    def state(self) -> str:
        return self._server.state(self.ids["modeldeployment1"])

    def _filled(self, text: str) -> str:
        return re.sub(r"\{([a-z]+\d*)\}", lambda name: self.ids[name[1]], text)


def test_aqua_creates_updates_and_deletes_a_stacked_deployment(server: Rig, tmp_path: Path) -> None:
    """`oracle-ads` 2.16.1: the second group gives the base another key, and is LIVE."""
    steps = json.loads((RECORDED / "aqua.json").read_bytes())
    replay = Replay(
        server,
        {
            "base.zip": zipped(write_base(tmp_path / "base")),
            "a.zip": packed(server.roots, 1),
            "b.zip": packed(server.roots, 2),
        },
    )
    served: list[dict[str, str]] = []
    engines: list[object] = []
    for step in steps:
        replay.step(step)
        if step["call"].startswith(("PUT", "POST /20190101/modelDeployments")):
            until(lambda: replay.state() in ("ACTIVE", "INACTIVE"))
            path = f"/modelDeployments/{replay.ids['modeldeployment1']}/models/modelState"
            rows = server.ask("GET", path)
            served.append({row["inferenceKey"]: row["state"] for row in rows})
            active = server.service._slot.active
            engines.append(active and active.serving)
    one = {"tiny": "SUCCESS", "a": "SUCCESS"}
    two = {"renamed": "SUCCESS", "a": "SUCCESS", "b": "SUCCESS"}
    created, live, described, idle, again = served
    assert (created, live, described, idle, again) == (one, two, two, two, two)
    assert engines[0] is engines[1] is engines[2], "a rename and a description start no engine"
    assert engines[3] is None
    until(lambda: replay.state() == "DELETED")

    def ends() -> list[str]:
        path = f"/workRequests?resourceId={replay.ids['modeldeployment1']}"
        return [row["status"] for row in server.ask("GET", path)]

    until(lambda: ends() == ["SUCCEEDED"] * 6)


def test_a_platform_drives_the_verbs_of_a_container(server: Rig) -> None:
    """BYOC's LIVE update: DELETE what leaves, POST what comes, by model id and nothing else."""
    server.stock()
    first, empty, second, _ = server.ids["models"]
    (id,) = server.ids["modelDeployments"]

    def states() -> dict[str, str]:
        rows = server.ask("GET", f"/modelDeployments/{id}/models/modelState")
        return {row["inferenceKey"]: row["state"] for row in rows}

    def post(model: str, status: int, **body: str) -> Any:
        answer = server.http.post(f"/models/{model}", json=body or None)
        assert answer.status_code == status, answer.text
        return answer.json()

    assert states() == {"base": "SUCCESS", "x": "SUCCESS"}
    assert server.http.delete(f"/models/{first}").status_code == 200
    assert states() == {"base": "SUCCESS", "x": "FAILED"}
    assert server.http.get(f"/models/{first}/health").status_code == 404
    assert post(first, 200)["key"] == "x"
    assert states() == {"base": "SUCCESS", "x": "SUCCESS"}
    assert post(second, 200)["modelId"] == second
    assert server.http.get(f"/models/{second}/health").json()["model"] == second
    assert post(second, 200, key="another")["key"] == "another"
    assert post(second, 400, key="a\tb")["code"] == "KeyInvalid"
    assert post(empty, 409)["code"] == "RecordConflict"
    assert post("ocid1.datasciencemodel.oc1..none", 404)["code"] == "SourceNotFound"


def test_oracles_page_of_a_stacked_deployment_leaves_the_version_out(
    server: Rig,
) -> None:
    """The REST calls of `llm-stacked-inferencing.md`, with its literal `{endpoint}/…` paths."""
    base = server.model(customMetadataList=[{"key": "source", "value": str(server.roots / "base")}])
    first, second = server.adapter(1, base), server.adapter(2, base)

    def group(**tuned: str) -> str:
        entries = {"basemodel": base, **tuned}
        members = [{"inferenceKey": key, "modelId": id} for key, id in entries.items()]
        body = {
            "createType": "CREATE",
            "compartmentId": C,
            "projectId": P,
            "modelGroupDetails": {"type": "STACKED", "baseModelId": base},
            "memberModelEntries": {"memberModelDetails": members},
        }
        made = server.http.post(f"/modelGroups?compartmentId={C}", json=body)
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    params = f"--served-model-name {base} --max-lora-rank 64 --max-model-len 512 --enable_lora"
    environment = {
        "environmentConfigurationType": "OCIR_CONTAINER",
        "image": "odsc-vllm-serving:0.6.4",
        "serverPort": 8080,
        "healthCheckPort": 8080,
        "environmentVariables": {
            "MODEL_DEPLOY_PREDICT_ENDPOINT": "/v1/completions",
            "PARAMS": params,
            "PORT": "8080",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
            "TENSOR_PARALLELISM": "1",
        },
    }
    details: dict[str, Any] = {
        "deploymentType": "MODEL_GROUP",
        "modelGroupConfigurationDetails": {"modelGroupId": group(**{"sql-lora-2": first})},
        "infrastructureConfigurationDetails": {
            "infrastructureType": "INSTANCE_POOL",
            "instanceConfiguration": {"instanceShapeName": "VM.GPU.A10.1"},
            "scalingPolicy": {"policyType": "FIXED_SIZE", "instanceCount": 1},
        },
        "environmentConfigurationDetails": environment,
    }
    body = {
        "displayName": "stacked",
        "compartmentId": C,
        "projectId": P,
        "modelDeploymentConfigurationDetails": details,
    }
    made = server.http.post("/modelDeployments", json=body)
    assert made.status_code == 200, made.text
    id = str(made.json()["id"])
    until(lambda: server.state(id) == "ACTIVE")
    after = group(**{"sql-lora-2": first, "sql-lora-3": second})
    body["modelDeploymentConfigurationDetails"] = {
        "deploymentType": "MODEL_GROUP",
        "updateType": "LIVE",
        "modelGroupConfigurationDetails": {"modelGroupId": after},
    }
    assert server.http.put(f"/modelDeployments/{id}", json=body).status_code == 202
    until(lambda: server.state(id) == "ACTIVE")
    rows = server.http.get(f"/modelDeployments/{id}/models/modelState").json()
    assert {row["inferenceKey"] for row in rows} == {"basemodel", "sql-lora-2", "sql-lora-3"}


def test_the_notebooks_begin_with_a_version_set_and_tell_a_history_of_a_group(
    server: Rig,
) -> None:
    """The control-plane calls of Oracle's model group notebooks, in their order."""
    line = {"name": "sklearn", "compartmentId": C, "projectId": P}
    version_set = server.ask("POST", "/modelVersionSets", line)["id"]
    (found,) = server.ask("GET", f"/modelVersionSets?compartmentId={C}&name=sklearn")
    assert found["id"] == version_set
    models = [
        server.onnx(modelVersionSetId=version_set, versionLabel=label) for label in ("v1", "v2")
    ]
    assert [server.ask("GET", f"/models/{id}")["versionId"] for id in models] == [1, 2]
    group = server.ask(
        "POST",
        "/modelGroups",
        {
            "createType": "CREATE",
            "displayName": "homogeneous",
            "modelGroupDetails": {"type": "HOMOGENEOUS"},
            "memberModelEntries": {"memberModelDetails": [{"modelId": id} for id in models]},
        },
    )["id"]
    code = archive_of(**{"score.py": b"", "runtime.yaml": b""})
    server.http.post(f"/20190101/modelGroups/{group}/artifact", content=code).raise_for_status()
    first = {"displayName": "line", "latestModelGroupId": group}
    history = server.ask("POST", "/modelGroupVersionHistory", first)["id"]
    source = {"modelGroupCloneSourceType": "MODEL_GROUP", "sourceId": group}
    clone = {"createType": "CLONE", "modelGroupCloneSourceDetails": source}
    outside = server.ask("POST", "/modelGroups", clone)["id"]
    changed = server.ask(
        "PUT", f"/modelGroupVersionHistory/{history}", {"latestModelGroupId": outside}
    )
    assert changed["latestModelGroupId"] == outside
    assert server.ask("GET", f"/modelGroups/{outside}")["versionId"] == 2
