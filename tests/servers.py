"""The servers that several folders of tests share, each started by the first test that asks.

They are a plugin of pytest: a fixture that a second conftest imported would start a second server.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import stacked
from stacked import config
from stacked.bases import default_data_dir, resolve
from tests.conftest import TinyModels
from tests.engine.releases import RELEASE
from tests.postgres import storage_in
from tests.serving import Server, free_port, serving

if TYPE_CHECKING:
    from stacked.stack import SyncStack
    from tests.contract.world import World
    from tests.live.lab import Lab

ROOT = Path(__file__).parents[1]
MAX_BODY_BYTES = 100_000


# -- a control plane that asks for signatures -----------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A server, its config, and the file that `stacked keys create` has written for the SDK."""

    server: Server
    config: Path
    config_file: Path

    def configure(self, **server: Any) -> None:
        """Change the server's settings; they count from its next start on."""
        tree = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        tree["server"] |= server
        self.config.write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.fixture(scope="session")
def signed(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    """A server without a base, where nothing is deployed yet."""
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
            "adapter_roots": [str(tiny_models.root)],
            "auth": {"oci": True, "bearer": True},
        },
        "models": {"code": True},
    }
    if url := storage_in(directory).database_url:
        tree["storage"] = {"database": url}
    path = directory / "control.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    # Nothing is healthy before something is deployed; who does not sign is told so at once.
    ready = {"path": "/openapi.json", "status": 401}
    with serving(
        str(path), "--data-dir", "data", directory=directory, port=port, **ready
    ) as server:
        yield Signed(server, path, directory / "data" / "clients" / "alice" / "config")


@pytest.fixture(scope="session")
def world(signed: Signed, tiny_models: TinyModels) -> World:
    import oci

    from tests.contract.world import World

    given = oci.config.from_file(str(signed.config_file))
    return World(signed.server.url, given, tiny_models.base, tiny_models.adapters)


# -- the demo as a user serves it -----------------------------------------------------------

CONFIG = ROOT / "configs" / "demo.yaml"
BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where `make setup` put the base; raises BaseNotFound with what to do where it has not."""
    return default_data_dir()


@pytest.fixture(scope="session")
def base_dir(data_dir: Path) -> Path:
    return resolve(BASE, data_dir)


@pytest.fixture(scope="session")
def demo(
    base_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """`configs/demo.yaml`, the real base and the shipped adapters.

    With records of its own: what one session leaves served, another one does not start with.
    """
    with serving_demo(tmp_path_factory.mktemp("demo"), data_dir) as running:
        yield running


@contextmanager
def serving_demo(directory: Path, data_dir: Path, **server: Any) -> Iterator[Server]:
    """The demo with records of its own, and these settings of the server."""
    (directory / "data").mkdir()
    (directory / "data" / "bases").symlink_to(data_dir / "bases")
    port, path = free_port(), _config(directory)
    if server:
        text = path.read_text(encoding="utf-8").replace("../adapters", str(ROOT / "adapters"))
        tree = yaml.safe_load(text)
        tree["server"] |= server
        path = directory / "served.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = [str(path), "--port", str(port), "--data-dir", "data"]
    with serving(*arguments, directory=directory, port=port) as running:
        yield running


def _config(directory: Path) -> Path:
    """The demo's own file; up to vLLM 0.30 without the option that came later."""
    if RELEASE >= (0, 31):
        return CONFIG
    text = CONFIG.read_text(encoding="utf-8").replace("../adapters", str(ROOT / "adapters"))
    lines = [line for line in text.splitlines() if "tool_strict_level" not in line]
    path = directory / "demo.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# -- engines in this process ----------------------------------------------------------------

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """An engine with a live group of two adapters, without HTTP or records."""
    from tests.live.lab import Lab

    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.start({"x": lab.add(), "y": lab.add()})
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="session")
def stack(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncStack]:
    """The Python API over an engine that drafts tokens from what was said: `base`, `a` and `b`."""
    directory = tmp_path_factory.mktemp("stack")
    tree = config.Config(
        base=config.BaseConfig(model=str(tiny_models.base), key="base"),
        group=config.GroupConfig(
            members=tuple(
                config.MemberConfig(source=str(tiny_models.adapters[key]), key=key)
                for key in ("a", "b")
            )
        ),
        engine={"max_model_len": 256, "kv_cache_memory_bytes": 2**28, "speculative_config": NGRAM},
    )
    with stacked.open_sync(tree, data_dir=directory) as opened:
        yield opened
