"""What a script that drives the server has: the SDK's clients, models, and one deployment.

It must not know the package under test; what it knows is OCI's SDK.
"""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import oci
import pytest
import requests
from oci.data_science import DataScienceClient, DataScienceClientCompositeOperations
from oci.data_science import models as sdk
from oci.exceptions import ServiceError
from oci.model_deployment import ModelDeploymentClient
from oci.retry import NoneRetryStrategy

from tests.api.control.plane import archive_of
from tests.conftest import PROMPT
from tests.contract.document import Document
from tests.waiting import until

C, P = "ocid1.compartment.oc1..c", "ocid1.datascienceproject.oc1..p"
# On a busy machine an engine needs minutes; the bound only ends what hangs.
WAIT = {"max_interval_seconds": 1, "max_wait_seconds": 1200}
OVER = ["SUCCEEDED", "FAILED", "CANCELED"]


class Signing(httpx.Auth):
    """The SDK's signatures on httpx's requests."""

    requires_request_body = True

    def __init__(self, signer: Any) -> None:
        self._signer = signer

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        headers = {"content-type": request.headers.get("content-type", "application/json")}
        made = requests.Request(request.method, str(request.url), headers, data=request.content)
        request.headers.update(self._signer(made.prepare()).headers)
        yield request


class World:
    """One server, its base and adapters, and the deployment, which is made when it is needed."""

    def __init__(self, url: str, config: dict[str, Any], base: Path, adapters: dict[str, Path]):
        # A slash behind, as people paste it: the client then signs and sends `//20190101/…`.
        options = {"service_endpoint": f"{url}/", "retry_strategy": NoneRetryStrategy()}
        self.url = url
        self.signer = oci.signer.Signer.from_config(config)
        self.signing = Signing(self.signer)
        self.document = Document(self.raw("GET", "/openapi.json").json())
        self.control = DataScienceClient(config, **options)
        self.control.base_client.session.hooks["response"].append(self.document.check)
        self.waiting = DataScienceClientCompositeOperations(self.control)
        self.inference = ModelDeploymentClient(config, **options)
        self.inference.base_client.session.hooks["response"].append(self.document.check)
        self.zips = {name: zipped(path) for name, path in adapters.items()}
        self._numbers = itertools.count(1)
        self.base = self.uploaded(zipped(base))
        self.adapters = {name: self.uploaded(self.zips[name]) for name in ("a", "b", "c")}
        self.zips["code"] = archive_of(**{"score.py": b"", "runtime.yaml": b""})
        self._deployment: str | None = None

    def raw(self, method: str, path: str, **more: Any) -> requests.Response:
        """A request that the SDK would not make, signed as it signs."""
        return requests.request(
            method, self.url + path, **{"auth": self.signer, "timeout": 60, **more}
        )

    # -- making -----------------------------------------------------------------------------

    def name(self, kind: str = "thing") -> str:
        return f"{kind} {next(self._numbers)}"

    def model(self, **more: Any) -> str:
        """A model without content; its id."""
        details = sdk.CreateModelDetails(compartment_id=C, project_id=P, **more)
        return str(self.control.create_model(details).data.id)

    def uploaded(self, content: bytes) -> str:
        id = self.model(display_name=self.name("model"))
        self.control.create_model_artifact(
            id, io.BytesIO(content), content_disposition='attachment; filename="model.zip"'
        )
        return id

    def stacked(
        self, members: dict[str, str], base_key: str = "base", **more: Any
    ) -> sdk.CreateModelGroupDetails:
        """The request for a STACKED group of the base and these models, by key."""
        entries = {base_key: self.base, **members}
        return sdk.CreateModelGroupDetails(
            compartment_id=C,
            project_id=P,
            model_group_details=sdk.StackedModelGroupDetails(base_model_id=self.base),
            member_model_entries=sdk.MemberModelEntries(
                member_model_details=[
                    sdk.MemberModelDetails(model_id=id, inference_key=key)
                    for key, id in entries.items()
                ]
            ),
            **more,
        )

    def group(self, *names: str, keys: dict[str, str] | None = None, **more: Any) -> str:
        """A group of adapters under their names, or under `keys`: key to name; its id."""
        named = keys or {name: name for name in names or ("a",)}
        members = {key: self.adapters[name] for key, name in named.items()}
        details = self.stacked(members, **{"display_name": self.name("group"), **more})
        return str(self.control.create_model_group(details).data.id)

    def homogeneous(self) -> str:
        """A group of one ONNX model, which nobody reads; its id."""
        model = self.uploaded(archive_of(**{"model.onnx": b"1"}))
        details = sdk.CreateModelGroupDetails(
            compartment_id=C,
            project_id=P,
            model_group_details=sdk.HomogeneousModelGroupDetails(),
            member_model_entries=sdk.MemberModelEntries(
                member_model_details=[sdk.MemberModelDetails(model_id=model)]
            ),
        )
        return str(self.control.create_model_group(details).data.id)

    def history(self, **more: Any) -> str:
        details = sdk.CreateModelGroupVersionHistoryDetails(
            compartment_id=C, project_id=P, display_name=self.name("line"), **more
        )
        return str(self.control.create_model_group_version_history(details).data.id)

    # -- the deployment ---------------------------------------------------------------------

    def deployment(self, state: str = "ACTIVE") -> str:
        """The deployment of `a` and `b`, made where there is none, and in this state."""
        id = self._deployed(state)
        members = {"base": self.base, "a": self.adapters["a"], "b": self.adapters["b"]}
        rows = self.control.list_model_deployment_model_states(id, C).data
        if state == "ACTIVE" and {row.inference_key: row.model_id for row in rows} != members:
            self.live(id, self.group("a", "b"))
        return id

    def _deployed(self, state: str) -> str:
        if self._deployment is None:
            body = seed_deployment(self.group("a", "b"))
            created = self.waiting.create_model_deployment_and_wait_for_state
            with ThreadPoolExecutor(1) as pool:
                wait = pool.submit(created, body, wait_for_states=OVER, waiter_kwargs=WAIT)
                self._see_it_creating()
                done = wait.result().data
            assert done.status == "SUCCEEDED", self.told(done.id)
            assert done.operation_type == "MODEL_DEPLOYMENT_CREATE"
            self._deployment = str(done.resources[0].identifier)
            self.created = self.control.get_model_deployment(self._deployment).data
        id = self._deployment
        if self.state(id) != state:
            verb = "activate" if state == "ACTIVE" else "deactivate"
            call = getattr(self.waiting, f"{verb}_model_deployment_and_wait_for_state")
            done = call(id, wait_for_states=OVER, waiter_kwargs=WAIT).data
            assert done.status == "SUCCEEDED", self.told(done.id)
        assert self.state(id) == state
        return id

    def live(self, id: str, group: str) -> None:
        """A LIVE update to this group, waited for as the SDK does."""
        chosen = sdk.UpdateModelGroupConfigurationDetails(model_group_id=group)
        kind = sdk.UpdateModelGroupDeploymentConfigurationDetails
        details = sdk.UpdateModelDeploymentDetails(
            model_deployment_configuration_details=kind(
                update_type="LIVE", model_group_configuration_details=chosen
            )
        )
        call = self.waiting.update_model_deployment_and_wait_for_state
        done = call(id, details, wait_for_states=OVER, waiter_kwargs=WAIT).data
        assert done.status == "SUCCEEDED", self.told(done.id)
        assert (done.operation_type, done.percent_complete) == ("MODEL_DEPLOYMENT_UPDATE", 100)
        shown = self.control.get_model_deployment(id).data.model_deployment_configuration_details
        assert shown.model_group_configuration_details.model_group_id == group

    def _see_it_creating(self) -> None:
        """A deployment that is there and does not serve yet."""
        found: list[dict[str, Any]] = []

        def creating() -> bool:
            answer = self.raw("GET", "/20190101/modelDeployments?lifecycleState=CREATING")
            found.extend(answer.json())
            return bool(found)

        until(creating)
        id = found[0]["id"]
        assert found[0]["modelDeploymentUrl"] == f"{self.url}/{id}"
        answers: list[requests.Response] = []

        def at_work() -> bool:  # a moment after the record is there
            body = {"model": "a", "prompt": PROMPT}
            answers.append(self.raw("POST", f"/{id}/predict", json=body))
            return answers[-1].status_code != 404

        until(at_work)
        last = answers[-1]
        assert (last.status_code, last.json().get("code")) == (503, "ServiceUnavailable"), last.text

    def retire(self) -> None:
        """Delete the deployment, so that another one can serve."""
        if self._deployment is not None:
            call = self.waiting.delete_model_deployment_and_wait_for_state
            done = call(self._deployment, wait_for_states=OVER, waiter_kwargs=WAIT).data
            assert done.status == "SUCCEEDED", self.told(done.id)
            assert self.state(self._deployment) == "DELETED"
            self._deployment = None

    def state(self, id: str) -> str:
        return str(self.control.get_model_deployment(id).data.lifecycle_state)

    def told(self, work_id: str) -> str:
        """The errors and the log of a work request."""
        errors = self.control.list_work_request_errors(work_id).data
        logs = self.control.list_work_request_logs(work_id).data
        return "\n".join(str(row.message) for row in (*errors, *logs))

    def text(self, answer: str) -> str:
        return str(json.loads(answer)["choices"][0]["text"])

    def answers(self, id: str, key: str) -> str:
        """What a key answers, greedily, in the SDK's own words."""
        body = {"model": key, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        return self.text(self.inference.predict(id, body).data)


def seed_deployment(group_id: str, **more: Any) -> dict[str, Any]:
    """The request of the seeds' REST sample, as JSON."""
    pool = {
        "infrastructureType": "INSTANCE_POOL",
        "instanceConfiguration": {
            "instanceShapeName": "VM.Standard.E4.Flex",
            "modelDeploymentInstanceShapeConfigDetails": {"ocpus": 8, "memoryInGBs": 128},
        },
        "scalingPolicy": {"policyType": "FIXED_SIZE", "instanceCount": 1},
    }
    environment = {
        "environmentConfigurationType": "DEFAULT",
        "environmentVariables": {"WEB_CONCURRENCY": "1"},
    }
    log = {"logGroupId": "ocid1.loggroup.oc1.iad.g", "logId": "ocid1.log.oc1.iad.l"}
    return {
        "displayName": "MMS Model Group Deployment",
        "description": "mms",
        "compartmentId": C,
        "projectId": P,
        "modelDeploymentConfigurationDetails": {
            "deploymentType": "MODEL_GROUP",
            **more,
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
            "infrastructureConfigurationDetails": pool,
            "environmentConfigurationDetails": environment,
        },
        "categoryLogDetails": {"access": log, "predict": log},
    }


def zipped(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(directory.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def refused(status: int, code: str | None, call: Any, *args: Any, **kwargs: Any) -> str:
    """The sentence with which a call is refused, with this status and code."""
    with pytest.raises(ServiceError) as caught:
        call(*args, **kwargs)
    error = caught.value
    assert (error.status, error.code) == (status, code), error.message
    return cast(str, error.message)
