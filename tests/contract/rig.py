"""A whole server over HTTP whose engine is a double: the real service, records, files and routes.

It must not know how the routes do what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx

import stacked.service
from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.catalogue import Catalogue
from stacked.config import ControlConfig, ModelsConfig, ServerConfig, StorageConfig
from stacked.deployment.activation import Starter
from stacked.deployment.ledger import Ledger
from stacked.service import Service
from stacked.serving import Commit, Prepared, Serving
from stacked.serving.vllm import VllmPrepared
from stacked.steps import Progress
from tests.api.control.plane import archive_of, packed, stacked_body
from tests.api.doors import served
from tests.deployments.machine import FakeStarts
from tests.models.remote import PREFIX, Remote
from tests.postgres import storage_in
from tests.store.small import write_base
from tests.waiting import until


class Starts(FakeStarts):
    """Engines of adapters that are doubles, for groups and bases that are real."""

    def __init__(self, ledger: Ledger, catalogue: Catalogue, config: ControlConfig) -> None:
        super().__init__(ledger)
        self._starter = Starter(ledger, catalogue, config)

    async def prepare(self, group_id: str, configuration: Mapping[str, Any]) -> Prepared:
        return await self._starter.prepare(group_id, configuration)

    async def start(self, prepared: Prepared, commit: Commit, tell: Progress) -> Serving:
        if not isinstance(prepared, VllmPrepared):
            return await self._starter.start(prepared, commit, tell)
        serving = await super().start(prepared, commit, tell)
        serving.use(app_of_no_models())
        return serving


def app_of_no_models() -> SimpleNamespace:
    """What the routes ask of vLLM's app, which lists nothing here."""

    async def listed() -> SimpleNamespace:
        return SimpleNamespace(data=[])

    models = SimpleNamespace(show_available_models=listed)
    return SimpleNamespace(openapi=dict, state=SimpleNamespace(openai_serving_models=models))


@dataclass(frozen=True)
class Rig(Remote):
    """A running server, and what fills it. `ids` are records by the collection they are in."""

    service: Service
    url: str
    roots: Path
    ids: dict[str, list[str]]

    def adapter(self, seed: int, base: str) -> str:
        items = [{"key": "fine_tune_source", "value": base}]
        id = self.model(displayName=f"adapter {seed}", customMetadataList=items)
        content = packed(self.roots, seed)
        self.http.post(f"{PREFIX}/models/{id}/artifact", content=content).raise_for_status()
        return id

    def onnx(self, **more: Any) -> str:
        """A model with an ONNX file, which nobody reads here."""
        id, content = self.model(displayName="onnx", **more), archive_of(**{"model.onnx": b"1"})
        self.http.post(f"{PREFIX}/models/{id}/artifact", content=content).raise_for_status()
        return id

    def group(self, base: str, *members: tuple[str, str | None]) -> str:
        return str(self.ask("POST", "/modelGroups", stacked_body(*members, base=base))["id"])

    def stock(self) -> None:
        """New records of every kind, whatever has become of those before."""
        base = self.model(customMetadataList=[{"key": "source", "value": str(self.roots / "base")}])
        first, second, empty = self.adapter(1, base), self.adapter(2, base), self.model()
        groups = [
            self.group(base, (first, "x")),
            self.group(base, (first, "x"), (second, "y")),
            str(self.ask("POST", "/modelGroups", homogeneous(self.onnx()))["id"]),
        ]
        number = len(self.ask("GET", "/modelGroupVersionHistory", params={"limit": 1000}))
        named = {"displayName": f"line {number}", "latestModelGroupId": groups[0]}
        history = self.ask("POST", "/modelGroupVersionHistory", named)["id"]
        for path, kind in (("customMetadata/k", "POST"), ("definedMetadata/k", "POST")):
            place = f"{PREFIX}/models/{empty}/{path}/artifact"
            self.http.request(kind, place, content=b"some bytes").raise_for_status()
        self.ask("POST", f"/models/{first}/provenance", {"gitBranch": "main"})
        fresh = {
            "models": [first, empty, second, base],
            "modelGroups": groups,
            "modelGroupVersionHistory": [history],
            "modelDeployments": [self._deployed(groups[0])],
            "workRequests": [row["id"] for row in self.ask("GET", "/workRequests?limit=3")],
        }
        self.ids.update(fresh)

    def retire(self) -> None:
        """Delete the deployment that serves, if one does, when what is under way is over."""
        until(lambda: self.service.deployments.running is None)
        for row in self.ask("GET", "/modelDeployments?lifecycleState=ACTIVE"):
            self.http.delete(f"{PREFIX}/modelDeployments/{row['id']}").raise_for_status()
            until(lambda id=row["id"]: self.state(id) == "DELETED")

    def _deployed(self, group_id: str) -> str:
        """A new deployment, in the place of the one that serves."""
        self.retire()
        details = {
            "deploymentType": "MODEL_GROUP",
            "modelGroupConfigurationDetails": {"modelGroupId": group_id},
        }
        body = {"displayName": "d", "modelDeploymentConfigurationDetails": details}
        id = str(self.ask("POST", "/modelDeployments", body)["id"])
        until(lambda: self.state(id) == "ACTIVE")
        return id


def homogeneous(*members: str) -> dict[str, Any]:
    entries = [{"modelId": id} for id in members]
    return {
        "createType": "CREATE",
        "modelGroupDetails": {"type": "HOMOGENEOUS"},
        "memberModelEntries": {"memberModelDetails": entries},
    }


@contextmanager
def rig(directory: Path, storage: StorageConfig | None = None, **server: Any) -> Iterator[Rig]:
    """A server on a port of its own, with nothing in it. `http` signs nothing."""
    roots = directory / "roots"
    write_base(roots / "base")
    models = ModelsConfig(code=True)
    own = ServerConfig(adapter_roots=(str(roots),), **server)
    config = ControlConfig(server=own, models=models, storage=storage or storage_in(directory))
    service = Service(config, directory / "data", durable=True)
    with patch.object(stacked.service, "Starter", Starts):
        asyncio.run(service.start())
    door = Gateway(service, create_routes(service), open_gate(config, directory / "data"))
    with served(door) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield Rig(http, service, url, roots, {})
    service.ledger.close()
