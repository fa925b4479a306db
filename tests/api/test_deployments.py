"""A deployment's whole life through OCI's own SDK, on the real engine, from a bare server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from oci.circuit_breaker import NoCircuitBreakerStrategy
from oci.data_science import DataScienceClient, DataScienceClientCompositeOperations
from oci.data_science import models as sdk
from oci.exceptions import ServiceError
from oci.model_deployment import ModelDeploymentClient
from oci.retry import NoneRetryStrategy

from tests.api.doors import sdk_config
from tests.conftest import PROMPT, TinyModels
from tests.serving import Server, free_port, serving

pytestmark = pytest.mark.engine

READY = "/20190101/modelDeployments"
OVER = ["SUCCEEDED", "FAILED", "CANCELED"]


@dataclass(frozen=True)
class Clients:
    """What a script has: the SDK's two clients, and the address that they were given."""

    control: DataScienceClient
    inference: ModelDeploymentClient
    url: str

    @property
    def waiting(self) -> DataScienceClientCompositeOperations:
        return DataScienceClientCompositeOperations(self.control)

    def text(self, id: str, key: str) -> str:
        body = {"model": key, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        return text_of(self.inference.predict(id, body).data)

    def stream(self, id: str, key: str) -> str:
        body = {"model": key, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        answer = self.inference.predict_with_response_stream(id, body)
        events = [event.data for event in answer.data.events()]
        return "".join(text_of(event) for event in events if event != "[DONE]")

    def longest(self, id: str) -> int:
        """The longest request that the engine takes, as a path below the deployment tells."""
        rows = httpx.get(f"{self.url}/{id}/predict/v1/models").json()["data"]
        return int(rows[0]["max_model_len"])

    def follow(self, work_id: str) -> sdk.WorkRequest:
        """The work request when it is over; its percentage must only grow."""
        percent, deadline = -1.0, time.monotonic() + 180
        while time.monotonic() < deadline:
            work = self.control.get_work_request(work_id).data
            assert work.percent_complete >= percent
            percent = work.percent_complete
            if work.status in OVER:
                assert (percent == 100) == (work.status == "SUCCEEDED")
                return work
            time.sleep(0.1)
        raise AssertionError(f"the work did not end: {work}")

    def logs(self, work_id: str) -> str:
        return "\n".join(row.message for row in self.control.list_work_request_logs(work_id).data)

    def state(self, id: str) -> str:
        return str(self.control.get_model_deployment(id).data.lifecycle_state)

    def health(self) -> int:
        return httpx.get(f"{self.url}/health").status_code


def text_of(answer: str) -> str:
    return str(json.loads(answer)["choices"][0]["text"])


def clients_of(server: Server) -> Clients:
    config = sdk_config(server.directory / "keys", force=True)
    options: dict[str, Any] = {
        "service_endpoint": server.url,
        "retry_strategy": NoneRetryStrategy(),
        "circuit_breaker_strategy": NoCircuitBreakerStrategy(),
    }
    return Clients(
        DataScienceClient(config, **options), ModelDeploymentClient(config, **options), server.url
    )


def write_config(directory: Path, models: TinyModels, port: int) -> Path:
    tree = {
        "engine": {"max_model_len": 256, "max_loras": 3, "kv_cache_memory_bytes": 2**28},
        "server": {"port": port, "drain_seconds": 10, "adapter_roots": [str(models.base.parent)]},
    }
    path = directory / "control.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def register(clients: Clients, source: Path) -> str:
    item = sdk.Metadata(key="source", value=str(source))
    details = sdk.CreateModelDetails(
        compartment_id="c", project_id="p", display_name=source.name, custom_metadata_list=[item]
    )
    return str(clients.control.create_model(details).data.id)


def group(clients: Clients, base: str, members: dict[str, str]) -> str:
    entries = {"base": base, **members}
    details = sdk.CreateModelGroupDetails(
        compartment_id="c",
        project_id="p",
        model_group_details=sdk.StackedModelGroupDetails(base_model_id=base),
        member_model_entries=sdk.MemberModelEntries(
            member_model_details=[
                sdk.MemberModelDetails(model_id=id, inference_key=key)
                for key, id in entries.items()
            ]
        ),
    )
    return str(clients.control.create_model_group(details).data.id)


def configuration(kind: type, group_id: str, params: str | None = None, **more: Any) -> Any:
    """The configuration of a deployment or of its update, as the SDK has it."""
    if params is not None:
        prefix = "Update" if "Update" in kind.__name__ else ""
        environment = getattr(sdk, f"{prefix}DefaultModelDeploymentEnvironmentConfigurationDetails")
        more["environment_configuration_details"] = environment(
            environment_variables={"PARAMS": params, "PORT": "8080"}
        )
    choice = sdk.ModelGroupConfigurationDetails(model_group_id=group_id)
    if "Update" in kind.__name__:
        choice = sdk.UpdateModelGroupConfigurationDetails(model_group_id=group_id)
    return kind(model_group_configuration_details=choice, **more)


def new_deployment(group_id: str) -> sdk.CreateModelDeploymentDetails:
    pool = sdk.InstancePoolInfrastructureConfigurationDetails
    infrastructure = pool(
        instance_configuration=sdk.InstanceConfiguration(instance_shape_name="VM.GPU.A10.1"),
        scaling_policy=sdk.FixedSizeScalingPolicy(instance_count=1),
    )
    return sdk.CreateModelDeploymentDetails(
        compartment_id="c",
        project_id="p",
        display_name="walk",
        model_deployment_configuration_details=configuration(
            sdk.ModelGroupDeploymentConfigurationDetails,
            group_id,
            "--max-lora-rank 16",
            infrastructure_configuration_details=infrastructure,
        ),
    )


def update(clients: Clients, id: str, group_id: str, kind: str, params: str | None = None) -> str:
    """Start an update; the id of its work request."""
    changed = configuration(
        sdk.UpdateModelGroupDeploymentConfigurationDetails, group_id, params, update_type=kind
    )
    details = sdk.UpdateModelDeploymentDetails(model_deployment_configuration_details=changed)
    answer = clients.control.update_model_deployment(id, details)
    assert (answer.status, answer.data) == (202, None)
    return str(answer.headers["opc-work-request-id"])


@contextmanager
def traffic(clients: Clients, id: str, key: str) -> Iterator[list[str]]:
    """One client that asks without a pause; what it got that was not an answer."""
    problems: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                clients.text(id, key)
            except ServiceError as error:
                problems.append(f"{error.status} {error.code}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield problems
    finally:
        stop.set()
        thread.join(timeout=60)


def refused(status: int, code: str, call: Any, *args: Any) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(ServiceError) as caught:
        call(*args)
    assert (caught.value.status, caught.value.code) == (status, code)
    return str(caught.value.message)


def test_deployment_lives_its_whole_life(tiny_models: TinyModels, tmp_path: Path) -> None:
    port = free_port()
    arguments = (str(write_config(tmp_path, tiny_models, port)), "--data-dir", "data")
    place: dict[str, Any] = {"directory": tmp_path, "port": port, "path": READY}
    with serving(*arguments, **place, ends_with=-signal.SIGKILL) as server:
        clients = clients_of(server)
        id, texts, groups = created(clients, tiny_models)
        updated_live(clients, id, texts, groups)
        replaced(clients, id, texts, groups)
        server.process.kill()
        server.process.wait()
    with serving(*arguments, **{**place, "path": "/health"}) as server:
        clients = clients_of(server)
        assert clients.state(id) == "ACTIVE"
        assert clients.longest(id) == 128
        assert clients.text(id, "x") == texts["b"]
        stopped(clients, id, texts)


def created(clients: Clients, models: TinyModels) -> tuple[str, dict[str, str], dict[str, str]]:
    """Nothing, then a deployment; its id, what its adapters answer, and groups to go on with."""
    assert clients.health() == 503
    assert "nothing is deployed" in httpx.get(f"{clients.url}/health").json()["message"]
    base = register(clients, models.base)
    ids = {name: register(clients, models.adapters[name]) for name in ("a", "b", "c")}
    groups = {
        "ab": group(clients, base, {"x": ids["a"], "y": ids["b"]}),
        "ba": group(clients, base, {"x": ids["b"], "y": ids["a"]}),
        "bc": group(clients, base, {"x": ids["b"], "z": ids["c"]}),
    }
    answer = clients.control.create_model_deployment(new_deployment(groups["ab"]))
    id, made = str(answer.data.id), answer.data
    assert made.lifecycle_state == "CREATING"
    assert made.model_deployment_url == f"{clients.url}/{id}"
    refused(503, "ServiceUnavailable", clients.text, id, "x")
    work = clients.follow(answer.headers["opc-work-request-id"])
    assert work.status == "SUCCEEDED", clients.logs(work.id)
    assert work.operation_type == "MODEL_DEPLOYMENT_CREATE"
    assert "Importing vLLM" in clients.logs(work.id)
    assert (clients.state(id), clients.health()) == ("ACTIVE", 200)
    states = clients.control.list_model_deployment_model_states(id, "c").data
    assert {(row.inference_key, row.state) for row in states} == {
        (key, "SUCCESS") for key in ("base", "x", "y")
    }
    texts = {"a": clients.text(id, "x"), "b": clients.text(id, "y")}
    texts["base"] = clients.text(id, "base")
    assert len(set(texts.values())) == 3
    assert clients.stream(id, "x") == texts["a"]
    said = refused(
        409, "Conflict", clients.control.create_model_deployment, new_deployment(groups["ba"])
    )
    assert id in said
    refused(404, "NotAuthorizedOrNotFound", clients.text, f"{id}0", "x")
    shapes = clients.control.list_model_deployment_shapes("c").data
    assert shapes[0].name == "LOCAL"
    assert {shape.core_count for shape in shapes} == {os.cpu_count()}
    return id, texts, groups


def updated_live(clients: Clients, id: str, texts: dict[str, str], groups: dict[str, str]) -> None:
    """LIVE, canceled and not, under traffic that never fails."""
    with traffic(clients, id, "x") as problems:
        work = update(clients, id, groups["ba"], "LIVE")
        clients.control.cancel_work_request(work)
        assert clients.follow(work).status == "CANCELED"
        assert clients.state(id) == "ACTIVE"
        assert clients.text(id, "x") == texts["a"]
        work = update(clients, id, groups["ba"], "LIVE")
        assert clients.follow(work).status == "SUCCEEDED", clients.logs(work)
        assert clients.text(id, "x") == texts["b"]
    assert problems == []
    assert "SUCCEEDED" in refused(409, "Conflict", clients.control.cancel_work_request, work)


def replaced(clients: Clients, id: str, texts: dict[str, str], groups: dict[str, str]) -> None:
    """Another engine: given up once, then with another group and another limit."""
    with traffic(clients, id, "x") as problems:
        work = update(clients, id, groups["bc"], "ZDT", "--max-model-len 128")
        assert clients.state(id) == "UPDATING"
        clients.control.cancel_work_request(work)
        assert clients.follow(work).status == "CANCELED"
        assert (clients.state(id), clients.longest(id)) == ("ACTIVE", 256)
        work = update(clients, id, groups["bc"], "ZDT", "--max-model-len 128")
        assert clients.follow(work).status == "SUCCEEDED", clients.logs(work)
        logs = clients.logs(work)
        beside = "beside the old one" in logs
        assert beside or "the old engine is stopped before" in logs
        assert clients.longest(id) == 128
        assert clients.text(id, "x") == texts["b"]
        assert clients.text(id, "z") not in texts.values()
    assert set(problems) <= (set() if beside else {"503 ServiceUnavailable"})
    kept = clients.control.get_model_deployment(id).data.model_deployment_configuration_details
    variables = kept.environment_configuration_details.environment_variables
    assert variables["PARAMS"] == "--max-model-len 128"
    shape = kept.infrastructure_configuration_details.instance_configuration.instance_shape_name
    assert shape == "VM.GPU.A10.1"


def stopped(clients: Clients, id: str, texts: dict[str, str]) -> None:
    """Deactivated, activated, deleted, each waited for as the SDK does."""
    wait: dict[str, Any] = {
        "wait_for_states": OVER,
        "waiter_kwargs": {"max_interval_seconds": 1, "max_wait_seconds": 180},
    }
    waiting = clients.waiting
    done = waiting.deactivate_model_deployment_and_wait_for_state(id, **wait).data
    assert (done.status, clients.state(id)) == ("SUCCEEDED", "INACTIVE")
    refused(404, "NotAuthorizedOrNotFound", clients.text, id, "x")
    assert clients.health() == 503
    refused(409, "Conflict", clients.control.deactivate_model_deployment, id)
    done = waiting.activate_model_deployment_and_wait_for_state(id, **wait).data
    assert (done.status, clients.state(id)) == ("SUCCEEDED", "ACTIVE")
    assert clients.text(id, "x") == texts["b"]
    done = waiting.delete_model_deployment_and_wait_for_state(id, **wait).data
    assert (done.status, clients.state(id)) == ("SUCCEEDED", "DELETED")
    assert clients.health() == 503
