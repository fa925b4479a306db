"""The demo as a user serves it: `configs/demo.yaml`, the real base and the shipped adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacked.bases import default_data_dir, resolve
from tests.engine.releases import RELEASE
from tests.serving import Server, free_port, serving

ROOT = Path(__file__).parents[2]
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
    """With records of its own: what one session leaves served, another one does not start with."""
    directory = tmp_path_factory.mktemp("demo")
    (directory / "data").mkdir()
    (directory / "data" / "bases").symlink_to(data_dir / "bases")
    port = free_port()
    arguments = [str(_config(directory)), "--port", str(port), "--data-dir", "data"]
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
