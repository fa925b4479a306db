"""Groups without a base by OCI's own SDK, over a server that is a process of its own.

The files are of the same shape as those of Oracle's model group notebooks.
"""

from __future__ import annotations

import io
import json
import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oci.data_science import models as sdk

from tests.api.control.plane import archive_of
from tests.contract.cloud import SLUG, Answer, Cloud, cloud_of
from tests.contract.world import C, P, refused, seed_deployment, zipped
from tests.models import saved
from tests.models.making import request, script, times
from tests.processes import alive
from tests.waiting import until

# The loader of every member: pickles need the modules beside it.
SCORE = b"""
import os, pickle
from functools import lru_cache

@lru_cache(maxsize=10)
def load_model(model_folder):
    with open(os.path.join(model_folder, "model.pickle"), "rb") as file:
        return pickle.load(file)

def predict(data, model, input_schema_path=None):
    return {"version": %d, "prediction": model.predict(data)}

def unload_model(model=None):
    load_model.cache_clear()
"""
# The loader of one model, which ADS generates.
OWN = b"""
import os, pickle

def load_model(model_file_name="model.pickle"):
    with open(os.path.join(os.path.dirname(__file__), model_file_name), "rb") as file:
        return pickle.load(file)

def predict(data, model=load_model()):
    return {"prediction": model.predict(data)}
"""
MODULE = b"""
import json

class model:
    def predict(self, data):
        data = json.loads(data) if isinstance(data, str) else data
        return %s(data["number"]) ** %s
"""
RUNTIME = f"""
MODEL_ARTIFACT_VERSION: '3.0'
MODEL_DEPLOYMENT:
  INFERENCE_CONDA_ENV:
    INFERENCE_ENV_PATH: oci://service-conda-packs@id/service_pack/cpu/1.0/{SLUG}
    INFERENCE_ENV_SLUG: {SLUG}
    INFERENCE_ENV_TYPE: data_science
    INFERENCE_PYTHON_VERSION: '3.12'
""".encode()
MODULES = {
    "model1.py": MODULE % (b"", b"2"),
    "model2.py": MODULE % (b"", b"0.5"),
    "model3.py": MODULE % (b"abs", b"0.5"),
}


def saved_model(number: int) -> bytes:
    """The artifact of a model that is the class of one of the modules, as pickle writes it."""
    module = f"model{number}.py"
    pickle = b"\x80\x02cmodel%d\nmodel\n)\x81." % number
    own = {module: MODULES[module], "score.py": OWN, "runtime.yaml": RUNTIME}
    return archive_of(**own, **{"model.pickle": pickle})


def code(version: int, *modules: int) -> dict[str, bytes]:
    """The artifact of a group, packed as one folder."""
    files = {"score.py": SCORE % version, "runtime.yaml": RUNTIME}
    files |= {name: MODULES[name] for name in (f"model{number}.py" for number in modules)}
    return {f"model_group_live/{name}": content for name, content in files.items()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud_of(tmp_path_factory.mktemp("models")) as cloud:
        yield cloud


@pytest.fixture
def cloud(running: Cloud) -> Iterator[Cloud]:
    """The server, where nothing is deployed before and after a test."""
    yield running
    running.retire()


@pytest.fixture(scope="module")
def served(running: Cloud) -> Iterator[sdk.ModelDeployment]:
    """A HOMOGENEOUS group that stays deployed."""
    group = running.group(sdk.HomogeneousModelGroupDetails(), root=running.model(saved_model(2)))
    running.code(group, code(1, 2))
    yield running.deploy(group)
    running.retire()


def test_the_seeds_homogeneous_deployment_gets_new_code_while_it_answers(cloud: Cloud) -> None:
    members = {"square": cloud.model(saved_model(1)), "root": cloud.model(saved_model(2))}
    first, second, broken = (
        cloud.group(sdk.HomogeneousModelGroupDetails(), **members) for _ in range(3)
    )
    assert "score.py and runtime.yaml" in refused(409, "Conflict", cloud.deploy, first)
    cloud.code(first, code(1, 1, 2))
    cloud.code(second, code(2, 1, 2))
    cloud.code(broken, code(3, 1))
    deployment = cloud.deploy(first)
    nine = {"json": {"number": 9}}
    for headers in ({"model-key": "square"}, {"model-ocid": members["square"]}):
        named = cloud.predict(deployment, headers=headers, **nine)
        assert named == {"version": 1, "prediction": 81}
    with cloud.asking(deployment, *members, **nine) as found:
        update = cloud.update(deployment.id, second)
    assert (update.status, update.percent_complete) == ("SUCCEEDED", 100)
    values = {"square": 81, "root": 3.0}
    assert {(each.status, each.generation) for each in found} == {(200, "1"), (200, "2")}
    for each in found:
        expected = {"version": int(each.generation or 0), "prediction": values[each.key]}
        assert each == Answer(each.key, 200, each.generation, expected)
    assert cloud.states(deployment.id) == {"square": "SUCCESS", "root": "SUCCESS"}
    steps = cloud.send("GET", f"/20190101/workRequests/{update.id}/logs").json()
    assert "SWITCH" in {each.get("step") for each in steps}
    assert len(cloud.client.list_work_request_logs(update.id).data) == len(steps)
    failed = cloud.update(deployment.id, broken)
    assert failed.status == "FAILED"
    errors = cloud.send("GET", f"/20190101/workRequests/{failed.id}/errors").json()
    assert [(each["code"], each.get("modelId")) for each in errors] == [
        ("EngineLoadFailed", members["root"]),
        ("UpdateFailed", None),
    ], "its pickle needs model2.py, which the new code lacks"
    assert len(cloud.client.list_work_request_errors(failed.id).data) == len(errors)
    assert cloud.predict(deployment, "root", **nine) == {"version": 2, "prediction": 3.0}
    shown = cloud.client.get_model_deployment(deployment.id).data
    chosen = shown.model_deployment_configuration_details.model_group_configuration_details
    assert (shown.lifecycle_state, chosen.model_group_id) == ("ACTIVE", second)
    sent = cloud.client.get_model_group_artifact_content(second).data.content
    with zipfile.ZipFile(io.BytesIO(sent)) as archive:
        assert archive.read("model_group_live/score.py") == SCORE % 2


def test_the_notebooks_models_are_versioned_grouped_deployed_and_one_replaced(
    cloud: Cloud, tmp_path: Path
) -> None:
    """The calls of the notebook with custom logic, in its order."""
    client = cloud.client
    lines = [
        client.create_model_version_set(
            sdk.CreateModelVersionSetDetails(compartment_id=C, project_id=P, name=f"live-{number}")
        ).data.id
        for number in (1, 2)
    ]
    one, two, three = (
        cloud.model(saved_model(number), model_version_set_id=line, version_label=label)
        for number, line, label in ((1, lines[0], "V2"), (2, lines[1], "V1"), (3, lines[1], "V2"))
    )
    for id in (one, two, three):
        client.create_model_provenance(id, sdk.CreateModelProvenanceDetails())

    def grouped(root: str, *modules: int) -> str:
        id = cloud.group(sdk.HomogeneousModelGroupDetails(), **{"square": one, "square-root": root})
        artifact = tmp_path / "model_group_live.zip"
        artifact.write_bytes(archive_of(**code(1, *modules)))
        with artifact.open("rb") as file:
            made = client.create_model_group_artifact(
                id, file, content_disposition=f"attachment;filename={artifact.name}"
            )
        assert made.status == 204
        return id

    before = grouped(two, 1, 2)
    history = client.create_model_group_version_history(
        sdk.CreateModelGroupVersionHistoryDetails(
            compartment_id=C, project_id=P, display_name="live", latest_model_group_id=before
        )
    ).data
    made = client.create_model_deployment(_deployment(before))
    assert made.data.lifecycle_state == "CREATING"
    cloud.ended(made)

    def answer(key: str, number: int) -> Any:
        headers = {"Content-Type": "application/json", "model-key": key}
        url = made.data.model_deployment_url + "/predict"
        return cloud.send("POST", url, json={"number": number}, headers=headers).json()

    assert answer("square", 9)["prediction"] == 81
    assert answer("square-root", 9)["prediction"] == 3.0
    assert answer("square-root", -9)["code"] == "ModelAnswerInvalid", "a complex number"
    after = grouped(three, 1, 2, 3)
    client.update_model_group_version_history(
        history.id, sdk.UpdateModelGroupVersionHistoryDetails(latest_model_group_id=after)
    )
    group = sdk.UpdateModelGroupConfigurationDetails(model_group_id=after)
    details = sdk.UpdateModelGroupDeploymentConfigurationDetails(
        deployment_type="MODEL_GROUP", update_type="LIVE", model_group_configuration_details=group
    )
    wanted = sdk.UpdateModelDeploymentDetails(
        display_name="updated", model_deployment_configuration_details=details
    )
    update = client.update_model_deployment(made.data.id, wanted)
    assert (update.status, cloud.ended(update).status) == (202, "SUCCEEDED")
    assert answer("square-root", -9)["prediction"] == 3.0
    versions = client.list_models(C, model_version_set_name="live-2").data
    assert {each.id for each in versions} == {two, three}
    (found,) = client.list_model_group_version_histories(C, project_id=P).data
    assert client.get_model_group_version_history(found.id).data.latest_model_group_id == after


def _deployment(group: str) -> sdk.CreateModelDeploymentDetails:
    """The notebook's details."""
    shape = sdk.ModelDeploymentInstanceShapeConfigDetails(memory_in_gbs=16, ocpus=1)
    instance = sdk.InstanceConfiguration(
        instance_shape_name="VM.Standard.E4.Flex",
        model_deployment_instance_shape_config_details=shape,
    )
    policy = sdk.FixedSizeScalingPolicy(policy_type="FIXED_SIZE", instance_count=1)
    details = sdk.ModelGroupDeploymentConfigurationDetails(
        deployment_type="MODEL_GROUP",
        model_group_configuration_details=sdk.ModelGroupConfigurationDetails(model_group_id=group),
        infrastructure_configuration_details=sdk.InstancePoolInfrastructureConfigurationDetails(
            infrastructure_type="INSTANCE_POOL",
            instance_configuration=instance,
            scaling_policy=policy,
        ),
        environment_configuration_details=sdk.DefaultModelDeploymentEnvironmentConfigurationDetails(
            environment_configuration_type="DEFAULT", environment_variables={"WEB_CONCURRENCY": "1"}
        ),
    )
    log = sdk.LogDetails(log_group_id="ocid1.loggroup...", log_id="ocid1.log...")
    return sdk.CreateModelDeploymentDetails(
        display_name="Business Logic Model Group",
        compartment_id=C,
        project_id=P,
        model_deployment_configuration_details=details,
        category_log_details=sdk.CategoryLogDetails(access=log, predict=log),
    )


def test_an_experiment_is_custom_metadata_and_its_weights_change_live(
    cloud: Cloud, tmp_path: Path
) -> None:
    contents = {key: times(tmp_path / key, by).path for key, by in (("double", 2), ("triple", 3))}
    members = {
        key: cloud.model((path / "model.onnx").read_bytes(), f"{key}.onnx")
        for key, path in contents.items()
    }

    def group(*weights: int, key: str = "number") -> str:
        arms = [{"key": k, "weight": w} for k, w in zip(members, weights, strict=True)]
        item = sdk.CustomMetadata(
            key="stacked.experiments", value=json.dumps([{"key": key, "arms": arms}])
        )
        details = sdk.HeterogeneousModelGroupDetails(custom_metadata_list=[item])
        return cloud.group(details, **members)

    sentence = refused(400, "InvalidParameter", group, 1, 1, key="double")
    assert "stacked.experiments.0.key" in sentence
    first = group(50, 50)
    deployment = cloud.deploy(first)

    def arms() -> list[str]:
        """The arm of each unit; its answer is that arm's."""
        found = []
        for unit in range(40):
            answer = cloud.send(
                "POST",
                f"{deployment.model_deployment_url}/predict",
                headers={"model-key": "number", "experiment-unit": f"user-{unit}"},
                data=request([[1, 2, 3]], [1, 3]),
            )
            by = answer.json()["outputs"][0]["data"][0]
            assert answer.headers["model-arm"] == {2: "double", 3: "triple"}[by]
            assert answer.headers["model-experiment"] == "number"
            found.append(answer.headers["model-arm"])
        return found

    before = arms()
    assert before == arms()
    assert set(before) == {"double", "triple"}
    assert cloud.update(deployment.id, group(60, 40)).status == "SUCCEEDED"
    moved = [pair for pair in zip(before, arms(), strict=True) if pair[0] != pair[1]]
    assert set(moved) <= {("triple", "double")}
    assert len(moved) < len(before) // 4
    clone = cloud.client.create_model_group(
        sdk.CloneModelGroupDetails(
            compartment_id=C,
            project_id=P,
            model_group_clone_source_details=sdk.CloneCreateFromModelGroupDetails(source_id=first),
        )
    ).data
    assert cloud.update(deployment.id, clone.id).status == "SUCCEEDED"
    assert arms() == before, "a clone has its source's experiments"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_models_of_four_frameworks_answer_behind_one_endpoint_while_one_is_killed(
    cloud: Cloud, tmp_path: Path
) -> None:
    graph = (times(tmp_path / "onnx", 2).path / "model.onnx").read_bytes()
    program = script(tmp_path / "script", 3).path / "model.pt"
    sent = saved_model(1)
    members = {
        "onnx": cloud.model(graph, "double.onnx"),
        "torch": cloud.model(program.read_bytes(), "triple.pt"),
        "tensorflow": cloud.model(zipped(saved.save(tmp_path / "saved", 4).path)),
        "code": cloud.model(sent),
    }
    assert cloud.client.get_model_artifact_content(members["code"]).data.content == sent
    assert cloud.client.get_model_artifact_content(members["onnx"]).data.content == graph
    group = cloud.group(sdk.HeterogeneousModelGroupDetails(), **members)
    refused(409, "Conflict", cloud.code, group, code(1))
    deployment = cloud.deploy(group)
    assert cloud.states(deployment.id) == dict.fromkeys(members, "SUCCESS")
    tensors = {"onnx": 2, "torch": 3, "tensorflow": 4}

    def infer(key: str) -> Any:
        body = request([[1, 2, 3]], [1, 3])
        answer = cloud.send("POST", f"/v2/models/{key}/infer", data=body)
        if not answer.ok:
            return answer.status_code
        found = answer.json()
        assert found["model_name"] == key
        return found["outputs"][0]["data"]

    def others_answer() -> bool:
        for key in ("onnx", "tensorflow"):
            assert infer(key) == [tensors[key] * x for x in (1, 2, 3)]
        return bool(cloud.predict(deployment, "code", json={"number": 5}) == {"prediction": 25})

    def killed_answers() -> bool:
        found = infer("torch")
        assert found in (503, [3, 6, 9]), "while its process starts again it is unavailable"
        return bool(others_answer() and found != 503)

    assert killed_answers()
    (worker,) = (each for each, line in cloud.workers().items() if "torch" in line.split())
    os.kill(worker[0], signal.SIGKILL)
    until(lambda: others_answer() and not alive([worker]))
    until(killed_answers)
    assert cloud.states(deployment.id) == dict.fromkeys(members, "SUCCESS")
    assert len(cloud.workers()) == 4
    for key in tensors:
        assert cloud.send("GET", f"/v2/models/{key}/ready").status_code == 200
        assert cloud.send("GET", f"/v2/models/{key}").json()["name"] == key


def test_what_is_refused_has_the_documented_codes(cloud: Cloud) -> None:
    """Those of docs/control-plane.md, "Other models" and "Model groups"."""
    of_code, of_any = sdk.HomogeneousModelGroupDetails(), sdk.HeterogeneousModelGroupDetails()
    upload = cloud.client.create_model_artifact
    empty = cloud.client.create_model(sdk.CreateModelDetails(compartment_id=C)).data.id
    refused(400, "ArchiveInvalid", upload, empty, archive_of(**{"model.keras": b"1"}))
    refused(400, "ArchiveInvalid", upload, empty, b"no zip")
    refused(409, "Conflict", cloud.group, of_any, key=empty)
    many = {str(number): empty for number in range(501)}
    refused(400, "InvalidParameter", cloud.group, of_any, **many)
    data = cloud.model(archive_of(**{"model.pickle": b"1"}))
    refused(409, "Conflict", cloud.deploy, cloud.group(of_any, data=data))
    group = cloud.group(of_code, root=cloud.model(saved_model(2)))
    refused(409, "Conflict", cloud.deploy, group)
    elsewhere = {**code(1, 2), "model_group_live/runtime.yaml": RUNTIME.replace(b"p312", b"p39")}
    sentence = refused(400, "InvalidParameter", cloud.code, group, elsewhere)
    assert SLUG in sentence
    assert SLUG.replace("p312", "p39") in sentence
    refused(400, "ArchiveInvalid", cloud.code, group, {"runtime.yaml": RUNTIME})
    cloud.code(group, code(1, 2))
    refused(409, "Conflict", cloud.code, group, code(2, 2))
    several = seed_deployment(group)
    environment = several["modelDeploymentConfigurationDetails"]["environmentConfigurationDetails"]
    environment["environmentVariables"] = {"MULTI_MODEL_CONFIG": "{}"}
    create = cloud.client.create_model_deployment
    assert "MULTI_MODEL_CONFIG" in refused(400, "InvalidParameter", create, several)
    assert not cloud.workers(), "nothing was started"


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "error"),
    [
        ("/predict", {}, {"json": 1}, 400, "KeyMissing"),
        ("/predict", {"model-key": "none"}, {"json": 1}, 404, "KeyUnknown"),
        ("/predict", {"model-key": "root"}, {"data": b"{"}, 400, "CannotParseRequest"),
        ("/predict", {"model-key": "root"}, {"data": b"NaN"}, 400, "CannotParseRequest"),
        ("/predict", {"model-key": "root"}, {"files": {"a": b"1"}}, 415, "EncodingUnsupported"),
        ("/predict", {"model-key": "root"}, {"json": {"no": 1}}, 500, "ModelFailed"),
        ("/predict", {"model-key": "root"}, {"json": {"number": -9}}, 500, "ModelAnswerInvalid"),
        (
            "/predictWithResponseStream",
            {"model-key": "root"},
            {"json": {"number": 9}},
            409,
            "ExternalServerIncorrectState",
        ),
        (
            "/predict/v1/completions",
            {"model-key": "root"},
            {"json": {}},
            404,
            "NotAuthorizedOrNotFound",
        ),
    ],
)
def test_a_request_is_refused_with_the_documented_code(
    served: sdk.ModelDeployment,
    running: Cloud,
    path: str,
    headers: dict[str, str],
    body: dict[str, Any],
    status: int,
    error: str,
) -> None:
    url = served.model_deployment_url + path
    answer = running.send("POST", url, headers=headers, **body)
    assert answer.status_code == status, answer.text
    assert answer.headers["opc-request-id"]
    shown = answer.json()
    assert shown.get("error", shown)["code"] == error, shown
