"""A control plane without an engine: real records and files, a small base, and adapters for it.

It must not know how the routes do what they do.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from starlette.testclient import TestClient

from stacked.api.routes import create_routes
from stacked.catalogue import Catalogue
from stacked.config import BaseConfig, Config, ServerConfig
from stacked.deployment.activation import Active
from stacked.registry import Deployment, GroupMember, GroupRecord, Model, Registry
from stacked.service import Service
from stacked.store import AdapterStore, ModelStore
from tests.postgres import place_in
from tests.store.small import write_adapter, write_base

BASE = "ocid1.datasciencemodel.oc1..base"
GROUP = "ocid1.datasciencemodelgroup.oc1..served"
DEPLOYMENT = "ocid1.datasciencemodeldeployment.oc1..d"


@dataclass(frozen=True)
class Plane:
    """The parts that tests look at, and the service that routes are given."""

    registry: Registry
    catalogue: Catalogue
    service: Service
    http: TestClient
    roots: Path
    """Where sources may stand."""
    files: Path
    """Where artifacts are kept."""

    def ask(
        self, method: str, path: str, expect: int = 200, /, body: Any = None, **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        content = body if isinstance(body, bytes) else None
        tree = None if content is not None else body
        answer = self.http.request(
            method, f"/20190101{path}", json=tree, content=content, headers=named
        )
        assert answer.status_code == expect, f"{answer.status_code} {answer.text}"
        return answer

    def json(self, method: str, path: str, expect: int = 200, /, body: Any = None) -> Any:
        return self.ask(method, path, expect, body).json()

    def model(self, **more: Any) -> str:
        """A model without content; its id."""
        return str(self.json("POST", "/models", body={"displayName": "m", **more})["id"])

    def adapter(self, seed: int, **more: Any) -> str:
        """A model with an uploaded adapter; its id."""
        id = self.model(displayName=f"adapter {seed}", **more)
        self.ask("POST", f"/models/{id}/artifact", 204, packed(self.roots, seed))
        return id

    def onnx(self, content: bytes = b"1", **more: Any) -> str:
        """A model with an uploaded ONNX file, which nobody reads here; its id."""
        id = self.model(displayName="onnx", **more)
        self.ask("POST", f"/models/{id}/artifact", 204, archive_of(**{"model.onnx": content}))
        return id

    def stored(self) -> list[str]:
        """The files of artifacts, without the place where they arrive."""
        return sorted(path.name for path in self.files.iterdir() if path.is_file())

    def arriving(self) -> list[Path]:
        return list((self.files / "incoming").iterdir())


@contextmanager
def control_plane(directory: Path, *, code: bool = False, **server: Any) -> Iterator[Plane]:
    """A plane with the base in the catalogue and in a group that a deployment serves.

    `code`: whether models may run code.
    """
    roots = directory / "roots"
    base = write_base(roots / "base")
    config = Config(
        base=BaseConfig(model=str(base)),
        server=ServerConfig(adapter_roots=(str(roots),), **server),
    )
    with Registry(place_in(directory)) as registry:
        stock(registry, base)
        files = directory / "artifacts"
        store = AdapterStore(directory / "store")
        models = ModelStore(store.root, code=code, pythons={"here": "/usr/bin/python3"})
        roots_given = config.server.adapter_roots
        catalogue = Catalogue(registry, store, files, roots=roots_given, models=models)
        service = cast(
            Service,
            SimpleNamespace(
                registry=registry,
                catalogue=catalogue,
                config=config,
                active=Active(DEPLOYMENT, "served", cast("Any", None)),
            ),
        )
        with TestClient(create_routes(service), base_url="http://here:8080/") as http:
            yield Plane(registry, catalogue, service, http, roots, files)


def stock(registry: Registry, base: Path) -> None:
    registry.models.put(
        Model(
            id=BASE, kind="base", digest="sha256:" + "b" * 64, display_name="base", source=str(base)
        )
    )
    members = (GroupMember(BASE, "base"),)
    registry.groups.create(
        GroupRecord(id=GROUP, display_name="served", base_model_id=BASE, members=members)
    )
    registry.deployments.create(Deployment(id=DEPLOYMENT, display_name="demo"))
    work = registry.work_requests.open("MODEL_DEPLOYMENT_CREATE")
    registry.work_requests.advance(work.id, 10)
    registry.deployments.commit(DEPLOYMENT, GROUP, 1, work.id)
    registry.work_requests.succeed(work.id)


def zipped(directory: Path, prefix: str = "") -> bytes:
    """A directory as a zip, under `prefix`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(directory.iterdir()):
            archive.write(file, prefix + file.name)
    return buffer.getvalue()


def archive_of(**files: bytes) -> bytes:
    """A zip; of the same files the same one at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o600 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def packed(roots: Path, seed: int, prefix: str = "", **config: Any) -> bytes:
    """The zip of an adapter of the base, another one for each seed."""
    place = roots / f"adapter-{seed}"
    if not place.exists():
        write_adapter(place, seed=seed, **config)
    return zipped(place, prefix)


def stacked_body(*members: tuple[str, str | None], base: str = BASE, **more: Any) -> dict[str, Any]:
    """A request for a STACKED group of the base and these models, with their keys."""
    entries = [(base, "base"), *members]
    details = [
        {"modelId": id} | ({"inferenceKey": key} if key is not None else {}) for id, key in entries
    ]
    return {
        "createType": "CREATE",
        "compartmentId": "c",
        "projectId": "p",
        "displayName": "two",
        "modelGroupDetails": {"type": "STACKED", "baseModelId": base},
        "memberModelEntries": {"memberModelDetails": details},
        **more,
    }


def clone_body(
    source: str, *patches: Any, kind: str = "MODEL_GROUP", **modify: Any
) -> dict[str, Any]:
    details = {
        "modelGroupCloneSourceType": kind,
        "sourceId": source,
        "modifyModelGroupDetails": modify,
        "patchModelGroupMemberModelDetails": {"items": list(patches)},
    }
    return {"createType": "CLONE", "modelGroupCloneSourceDetails": details}


def members_of(group: Any) -> dict[str, str | None]:
    entries = group["memberModelEntries"]["memberModelDetails"]
    return {entry["modelId"]: entry["inferenceKey"] for entry in entries}


def meta(model: Any) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in model["customMetadataList"]}
