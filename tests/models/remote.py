"""Models put into a server over HTTP, and its group changed, as any client does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.api.control.plane import archive_of
from tests.models.making import started_by
from tests.processes import Process
from tests.serving import Server, free_port, serving
from tests.waiting import until

PREFIX = "/20190101"
RUNTIME = b"MODEL_ARTIFACT_VERSION: '3.0'\n"
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Remote:
    """A server by its address."""

    http: httpx.Client

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.http.request(method, PREFIX + path, json=body, **more)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def model(self, **more: Any) -> str:
        return str(self.ask("POST", "/models", {"displayName": "m", **more})["id"])

    def state(self, id: str) -> str:
        return str(self.ask("GET", f"/modelDeployments/{id}")["lifecycleState"])

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/stacked/status").json())


@contextmanager
def serving_models(directory: Path, **tree: Any) -> Iterator[tuple[Server, Remote]]:
    """A `stacked serve` of its own, with nothing deployed, or with the group in `tree`."""
    path, port = directory / "config.yaml", free_port()
    server = {"port": port} | tree.pop("server", {})
    path.write_text(yaml.safe_dump({"models": {"code": True}, **tree, "server": server}))
    ready = "/health" if "group" in tree else "/openapi.json"
    arguments = (str(path), "--data-dir", str(directory / "data"))
    with (
        serving(*arguments, directory=directory, port=port, path=ready) as running,
        running.client() as http,
    ):
        yield running, Remote(http)


def workers(server: Server) -> dict[Process, str]:
    """The processes of its models."""
    return started_by(server.process.pid)


def model(server: Remote, **files: bytes) -> str:
    id, content = server.model(), archive_of(**files)
    server.http.post(f"{PREFIX}/models/{id}/artifact", content=content).raise_for_status()
    return id


def group(server: Remote, kind: str, **members: str) -> str:
    entries = [{"modelId": id, "inferenceKey": key} for key, id in members.items()]
    body = {
        "createType": "CREATE",
        "modelGroupDetails": {"type": kind},
        "memberModelEntries": {"memberModelDetails": entries},
    }
    return str(server.ask("POST", "/modelGroups", body)["id"])


def code_for(server: Remote, id: str, source: str) -> str:
    """Give a group this score.py; its id."""
    files = {"top/score.py": source.encode(), "top/runtime.yaml": RUNTIME}
    place = f"{PREFIX}/modelGroups/{id}/artifact"
    server.http.post(place, content=archive_of(**files)).raise_for_status()
    return id


def deploying(group_id: str, **variables: str) -> dict[str, Any]:
    environment = {"environmentConfigurationType": "DEFAULT", "environmentVariables": variables}
    details: dict[str, Any] = {
        "deploymentType": "MODEL_GROUP",
        "modelGroupConfigurationDetails": {"modelGroupId": group_id},
    }
    if variables:
        details["environmentConfigurationDetails"] = environment
    return {"displayName": "d", "modelDeploymentConfigurationDetails": details}


def deploy(server: Remote, group_id: str, **variables: str) -> str:
    id = str(server.ask("POST", "/modelDeployments", deploying(group_id, **variables))["id"])
    until(lambda: server.state(id) == "ACTIVE")
    return id


def begun(server: Remote, id: str, group_id: str, how: str = "LIVE") -> httpx.Response:
    """The answer to an update to another group."""
    details = {
        "deploymentType": "MODEL_GROUP",
        "updateType": how,
        "modelGroupConfigurationDetails": {"modelGroupId": group_id},
    }
    body = {"modelDeploymentConfigurationDetails": details}
    return server.http.put(f"{PREFIX}/modelDeployments/{id}", json=body)


def ended(server: Remote, work: str) -> str:
    """How a work request has ended."""
    until(lambda: server.ask("GET", f"/workRequests/{work}")["status"] in _ENDED)
    return str(server.ask("GET", f"/workRequests/{work}")["status"])


def changed(server: Remote, id: str, group_id: str, how: str = "LIVE") -> str:
    """How an update to another group has ended, or why there was none."""
    answer = begun(server, id, group_id, how)
    if not answer.is_success:
        return str(answer.json()["message"])
    return ended(server, answer.headers["opc-work-request-id"])
