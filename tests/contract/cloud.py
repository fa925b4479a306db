"""OCI's own SDK, unmodified and signed, over a `stacked serve` that begins with nothing deployed.

Its calls are those of the seeds and of Oracle's model group notebooks, but for the endpoint.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import oci
import requests
import yaml
from oci.data_science import DataScienceClient
from oci.data_science import models as sdk

from tests.api.control.plane import archive_of
from tests.api.doors import sdk_config, signer
from tests.contract.world import C, P, seed_deployment
from tests.processes import Process, descendants
from tests.serving import Server, free_port, serving
from tests.waiting import until

SLUG = "generalml_p312_cpu_x86_64_v1"
_CLIENTS, _MOST_REQUESTS = 4, 2000


@dataclass(frozen=True)
class Answer:
    """What a request got, and which generation of the group its headers name."""

    key: str
    status: int
    generation: str | None
    value: Any

    @classmethod
    def of(cls, key: str, response: requests.Response) -> Answer:
        named = response.headers.get("model-generation")
        return cls(key, response.status_code, named, response.json())


class Cloud:
    """What a user of the SDK does, and the server's process."""

    def __init__(self, server: Server, config: dict[str, Any]) -> None:
        self.server = server
        self.client = DataScienceClient(config, service_endpoint=server.url)
        self.signer = signer(config)

    # -- the catalogue ----------------------------------------------------------------------

    def model(self, content: bytes, name: str = "artifact.zip", **more: Any) -> str:
        details = sdk.CreateModelDetails(
            **{"compartment_id": C, "project_id": P, "display_name": "model", **more}
        )
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

    def code(self, group: str, files: Mapping[str, bytes]) -> None:
        self.client.create_model_group_artifact(group, io.BytesIO(archive_of(**files)))

    # -- the deployment ---------------------------------------------------------------------

    def deploy(self, group: str) -> sdk.ModelDeployment:
        """With the payload that the seeds print."""
        made = self.client.create_model_deployment(seed_deployment(group))
        assert self.ended(made).status == "SUCCEEDED"
        return self.client.get_model_deployment(made.data.id).data

    def update(self, deployment: str, group: str) -> sdk.WorkRequest:
        """Update it LIVE with the payload that the seeds print; how that has ended."""
        body = seed_deployment(group, updateType="LIVE")
        return self.ended(self.client.update_model_deployment(deployment, body))

    def ended(self, answer: Any) -> sdk.WorkRequest:
        """The work request of an answer, when it is over."""
        read = self.client.get_work_request(answer.headers["opc-work-request-id"])
        final = ("SUCCEEDED", "FAILED")
        return oci.wait_until(
            self.client,
            read,
            evaluate_response=lambda found: found.data.status in final,
            max_interval_seconds=1,
            max_wait_seconds=120,
        ).data

    def states(self, deployment: str) -> dict[str, str]:
        rows = self.client.list_model_deployment_model_states(deployment, C).data
        return {row.inference_key: row.state for row in rows}

    def retire(self) -> None:
        """Delete what is deployed, and wait until its processes are gone."""
        for row in self.client.list_model_deployments(C, lifecycle_state="ACTIVE").data:
            self.ended(self.client.delete_model_deployment(row.id))
        until(lambda: not self.workers())

    def workers(self) -> dict[Process, str]:
        """The processes that hold models, with the runtime of each."""
        found = descendants(self.server.process.pid)
        return {each: line for each, line in found.items() if "models.worker" in line}

    # -- inference --------------------------------------------------------------------------

    def send(self, method: str, path: str, **more: Any) -> requests.Response:
        """A request that is signed as the SDK signs."""
        url = path if path.startswith("http") else self.server.url + path
        return requests.request(method, url, **{"auth": self.signer, "timeout": 60, **more})

    def predict(self, deployment: sdk.ModelDeployment, key: str = "", **more: Any) -> Any:
        """The answer of a model, which is named by its key or by other headers."""
        url = f"{deployment.model_deployment_url}/predict"
        headers = more.pop("headers", {"model-key": key})
        answer = self.send("POST", url, headers=headers, **more)
        assert answer.ok, answer.text
        return answer.json()

    @contextmanager
    def asking(
        self, deployment: sdk.ModelDeployment, *keys: str, **body: Any
    ) -> Iterator[list[Answer]]:
        """Clients that ask for these keys without a pause while the block runs, and once after."""
        url = f"{deployment.model_deployment_url}/predict"
        over, found = Event(), list[Answer]()

        def ask() -> None:
            for _ in range(_MOST_REQUESTS):
                last = over.is_set()
                for key in keys:
                    answer = self.send("POST", url, headers={"model-key": key}, **body)
                    found.append(Answer.of(key, answer))
                if last:
                    return

        with ThreadPoolExecutor(_CLIENTS) as pool:
            asked = [pool.submit(ask) for _ in range(_CLIENTS)]
            try:
                until(lambda: len(found) >= 2 * _CLIENTS)
                yield found
            finally:
                over.set()
            for each in asked:
                each.result()


@contextmanager
def cloud_of(directory: Path, **models: Any) -> Iterator[Cloud]:
    """A server that asks for signatures; `models` is added to that section of its file."""
    port = free_port()
    tree = {
        "server": {"port": port, "auth": {"oci": True}},
        "models": {"code": True, "pythons": {SLUG: sys.executable}, **models},
    }
    path = directory / "control.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = sdk_config(directory / "data")
    # Nothing is healthy before something is deployed; who does not sign is told so at once.
    ready: dict[str, Any] = {"path": "/openapi.json", "status": 401}
    with serving(
        str(path), "--data-dir", "data", directory=directory, port=port, **ready
    ) as server:
        yield Cloud(server, config)
