"""One server for all tests of the contract: signed requests, the real engine, nothing deployed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import oci
import pytest
import yaml

from tests.conftest import TinyModels
from tests.contract.world import World
from tests.serving import Server, free_port, serving

MAX_BODY_BYTES = 100_000


@dataclass(frozen=True)
class Signed:
    """A server, and the file that `stacked keys create` has written for the SDK."""

    server: Server
    config_file: Path


@pytest.fixture(scope="session")
def signed(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    directory = tmp_path_factory.mktemp("contract")
    command = [sys.executable, "-m", "stacked", "keys", "create", "alice", "--oci"]
    subprocess.run([*command, "--data-dir", "data"], cwd=directory, check=True)
    port = free_port()
    tree = {
        "engine": {"max_model_len": 512, "max_loras": 3, "kv_cache_memory_bytes": 2**28},
        "server": {
            "port": port,
            "max_body_bytes": MAX_BODY_BYTES,
            "drain_seconds": 10,
            "adapter_roots": [str(tiny_models.base.parent)],
            "auth": {"oci": True},
        },
    }
    path = directory / "control.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    # Nothing is healthy before something is deployed; who does not sign is told so at once.
    ready = {"path": "/openapi.json", "status": 401}
    with serving(
        str(path), "--data-dir", "data", directory=directory, port=port, **ready
    ) as server:
        yield Signed(server, directory / "data" / "clients" / "alice" / "config")


@pytest.fixture(scope="session")
def world(signed: Signed, tiny_models: TinyModels) -> World:
    config = oci.config.from_file(str(signed.config_file))
    return World(signed.server.url, config, tiny_models.base, tiny_models.adapters)
