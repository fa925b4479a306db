"""Groups without a base by OCI's own SDK, unmodified and signed: from the artifacts to an answer.

The files and calls are those of Oracle's model group notebooks, but for the endpoint.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oci
import pytest
import requests
from oci.data_science import DataScienceClient
from oci.data_science import models as sdk
from oci.exceptions import ServiceError

from stacked.config import AuthConfig, OciAuth
from tests.api.control.plane import archive_of
from tests.api.doors import sdk_config, signer
from tests.contract.rig import rig
from tests.contract.world import seed_deployment
from tests.models.making import times
from tests.processes import descendants, wait_until_gone

C, P = "ocid1.compartment.oc1..c", "ocid1.datascienceproject.oc1..p"

# The loader of every member: pickles need the modules beside it.
SCORE = b"""
import os, pickle
from functools import lru_cache

@lru_cache(maxsize=10)
def load_model(model_folder):
    with open(os.path.join(model_folder, "model.pkl"), "rb") as file:
        return pickle.load(file)

def predict(data, model, input_schema_path=None):
    return {"prediction": model.predict(data)}

def unload_model(model=None):
    load_model.cache_clear()
"""
MODULE = b"""
class Square:
    def predict(self, x): return x * x

class Root:
    def predict(self, x): return x ** 0.5
"""
RUNTIME = b"MODEL_ARTIFACT_VERSION: '3.0'\nMODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: {}}\n"
CODE = {"model_group_live/score.py": SCORE, "model_group_live/runtime.yaml": RUNTIME}


def pickled(name: str) -> bytes:
    """An instance of a class of module model1, as pickle writes it."""
    return b"\x80\x02cmodel1\n%s\n)\x81." % name.encode()


class Cloud:
    """What the notebooks do, over one server."""

    def __init__(self, url: str, config: dict[str, Any]) -> None:
        self.client = DataScienceClient(config, service_endpoint=url)
        self._signer = signer(config)

    def model(self, content: bytes, name: str = "artifact.zip") -> str:
        details = sdk.CreateModelDetails(compartment_id=C, project_id=P, display_name="model")
        id = str(self.client.create_model(details).data.id)
        disposition = f'attachment; filename="{name}"'
        self.client.create_model_artifact(id, io.BytesIO(content), content_disposition=disposition)
        return id

    def group(self, details: sdk.ModelGroupDetails, **members: str) -> str:
        entries = [
            sdk.MemberModelDetails(model_id=id, inference_key=key) for key, id in members.items()
        ]
        wanted = sdk.CreateModelGroupDetails(
            compartment_id=C,
            project_id=P,
            model_group_details=details,
            member_model_entries=sdk.MemberModelEntries(member_model_details=entries),
        )
        made = self.client.create_model_group(wanted)
        assert self.client.get_work_request(made.headers["opc-work-request-id"]).data
        return str(made.data.id)

    def code(self, group: str, **files: bytes) -> None:
        self.client.create_model_group_artifact(group, io.BytesIO(archive_of(**files)))

    def deploy(self, group: str) -> sdk.ModelDeployment:
        """With the payload that the seeds print."""
        made = self.client.create_model_deployment(seed_deployment(group))
        assert self._ended(made) == "SUCCEEDED"
        return self.client.get_model_deployment(made.data.id).data

    def update(self, deployment: str, group: str) -> str:
        """How a LIVE update has ended."""
        body = seed_deployment(group, updateType="LIVE")
        return self._ended(self.client.update_model_deployment(deployment, body))

    def delete(self, deployment: str) -> None:
        self._ended(self.client.delete_model_deployment(deployment))

    def _ended(self, answer: Any) -> str:
        read = self.client.get_work_request(answer.headers["opc-work-request-id"])
        final = ("SUCCEEDED", "FAILED")
        done = oci.wait_until(
            self.client,
            read,
            evaluate_response=lambda found: found.data.status in final,
            max_interval_seconds=1,
            max_wait_seconds=120,
        )
        return str(done.data.status)

    def predict(self, deployment: sdk.ModelDeployment, key: str, **body: Any) -> Any:
        answer = requests.post(
            f"{deployment.model_deployment_url}/predict",
            auth=self._signer,
            headers={"model-key": key},
            timeout=60,
            **body,
        )
        assert answer.ok, answer.text
        return answer.json()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    config = sdk_config(tmp_path / "data")
    with rig(tmp_path, auth=AuthConfig(oci=OciAuth())) as server:
        made = Cloud(server.url, config)
        yield made
        processes = descendants(os.getpid())
        for row in made.client.list_model_deployments(C, lifecycle_state="ACTIVE").data:
            made.delete(row.id)
        wait_until_gone(processes)


def test_the_notebooks_homogeneous_group_answers_and_is_updated_live(cloud: Cloud) -> None:
    square, root = (
        cloud.model(archive_of(**{"model.pkl": pickled(name)})) for name in ("Square", "Root")
    )
    group = cloud.group(sdk.HomogeneousModelGroupDetails(), square=square, root=root)
    with pytest.raises(ServiceError) as caught:
        cloud.deploy(group)
    assert (caught.value.status, caught.value.code) == (409, "Conflict")
    assert "score.py and runtime.yaml" in caught.value.message
    module = {"model_group_live/model1.py": MODULE}
    cloud.code(group, **CODE, **module)
    deployment = cloud.deploy(group)
    assert cloud.predict(deployment, "square", json=9) == {"prediction": 81}
    assert cloud.predict(deployment, "root", json=9) == {"prediction": 3.0}
    changed = cloud.group(sdk.HomogeneousModelGroupDetails(), square=square, root=root)
    new = SCORE.replace(b'{"prediction"', b'{"version": 2, "prediction"')
    cloud.code(changed, **{**CODE, "model_group_live/score.py": new}, **module)
    assert cloud.update(deployment.id, changed) == "SUCCEEDED"
    assert cloud.predict(deployment, "square", json=9) == {"version": 2, "prediction": 81}
    shown = cloud.client.get_model_deployment(deployment.id).data
    chosen = shown.model_deployment_configuration_details.model_group_configuration_details
    assert chosen.model_group_id == changed
    with zipfile.ZipFile(
        io.BytesIO(cloud.client.get_model_group_artifact_content(changed).data.content)
    ) as archive:
        assert archive.read("model_group_live/score.py") == new


def test_a_heterogeneous_group_answers_by_what_each_of_its_models_is(
    cloud: Cloud, tmp_path: Path
) -> None:
    graph = (times(tmp_path / "three", 3).path / "model.onnx").read_bytes()
    own = {"score.py": SCORE, "model1.py": MODULE, "model.pkl": pickled("Square")}
    sent = archive_of(**own)
    square, triple = cloud.model(sent), cloud.model(graph, "triple.onnx")
    assert cloud.client.get_model_artifact_content(square).data.content == sent
    assert cloud.client.get_model_artifact_content(triple).data.content == graph
    group = cloud.group(sdk.HeterogeneousModelGroupDetails(), square=square, triple=triple)
    with pytest.raises(ServiceError) as caught:
        cloud.code(group, **CODE)
    assert (caught.value.status, caught.value.code) == (409, "Conflict")
    deployment = cloud.deploy(group)
    assert cloud.predict(deployment, "square", json=5) == {"prediction": 25}
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]
    (found,) = cloud.predict(deployment, "triple", json={"inputs": inputs})["outputs"]
    assert (found["shape"], found["data"]) == ([1, 3], [3.0, 6.0, 9.0])
    states = cloud.client.list_model_deployment_model_states(deployment.id, C).data
    assert {(row.inference_key, row.state) for row in states} == {
        ("square", "SUCCESS"),
        ("triple", "SUCCESS"),
    }
