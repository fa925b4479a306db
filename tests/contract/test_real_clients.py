"""The clients themselves, installed from their registries, against a signed server.

Long: they are some hundred megabytes. Where a registry is not reachable the test is skipped and
says so; `test_client_walks.py` has what they send. Engines are doubles.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stacked.config import AuthConfig, OciAuth
from stacked.keys import create_signing
from tests.api.control.plane import packed, zipped
from tests.contract.rig import Rig, rig
from tests.models.making import times
from tests.serving import free_port, serving
from tests.store.small import write_base

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

CLIENTS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Signed:
    """A server that asks for signatures, and the SDK's file of a key that it knows."""

    server: Rig
    config: Path


@pytest.fixture
def signed(tmp_path: Path) -> Iterator[Signed]:
    made = create_signing(tmp_path / "data", "alice")
    with rig(tmp_path, auth=AuthConfig(oci=OciAuth())) as server:
        yield Signed(server, made.sdk_config)


def installed(*command: str | Path, directory: Path) -> None:
    """Run an installer; the test is skipped with its last words where it fails."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        list(map(str, command)), cwd=directory, capture_output=True, text=True, timeout=1500
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
        pytest.skip(f"{' '.join(map(str, command))} failed: {last[0]}")


def seen(*command: str | Path, **environment: str) -> dict[str, Any]:
    """What a walk has seen: the last line that it prints."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_aqua(signed: Signed, tmp_path: Path) -> None:
    place = tmp_path / "ads"
    installed(sys.executable, "-m", "venv", place, directory=tmp_path)
    python = place / "bin" / "python"
    installed(python, "-m", "pip", "install", "-q", "oracle-ads[aqua]==2.16.1", directory=tmp_path)
    content = {
        "base": zipped(write_base(tmp_path / "base")),
        "a": packed(signed.server.roots, 1),
        "b": packed(signed.server.roots, 2),
    }
    zips = [tmp_path / f"{name}.zip" for name in content]
    for path, bytes_ in zip(zips, content.values(), strict=True):
        path.write_bytes(bytes_)
    found = seen(python, CLIENTS / "aqua.py", signed.server.url, signed.config, *zips)
    both = {"renamed": "SUCCESS", "a": "SUCCESS", "b": "SUCCESS"}
    assert "VM.GPU.A10.1" in found["shapes"]
    assert found["downloaded"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert found["created"] == ["ACTIVE", {"tiny": "SUCCESS", "a": "SUCCESS"}]
    assert "--max-model-len 256" in found["environment"]["PARAMS"]
    assert found["live"] == found["activated"] == ["ACTIVE", both]
    assert found["zdt"] == ["ACTIVE", "described"]
    assert found["got"] == [True, True]
    assert (found["deactivated"], found["deleted"]) == ("INACTIVE", "DELETED")
    assert {row.partition(" ")[2] for row in found["works"]} == {"SUCCEEDED"}


def test_typescript(signed: Signed, tmp_path: Path) -> None:
    place = tmp_path / "npm"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    packages = ("oci-common@2.142.1", "oci-datascience@2.139.1")
    installed("npm", "install", "--no-save", *packages, directory=place)
    walk = place / "typescript.cjs"
    shutil.copy(CLIENTS / walk.name, walk)
    base = signed.server.roots / "base"
    found = seen("node", walk, signed.server.url, signed.config, base)
    assert found == {
        "name": "é",
        "created": "ACTIVE",
        "renamed": "renamed",
        "deactivated": "INACTIVE",
        "deleted": "DELETED",
        "works": ["SUCCEEDED"] * 4,
    }


def test_tritonclient(tmp_path: Path) -> None:
    place, port = tmp_path / "triton", free_port()
    installed(sys.executable, "-m", "venv", place, directory=tmp_path)
    python = place / "bin" / "python"
    package = "tritonclient[http]==2.73.0"
    installed(python, "-m", "pip", "install", "-q", package, directory=tmp_path)
    times(tmp_path / "double", 2)
    members = [{"key": "double", "source": "./double"}]
    tree = {"group": {"name": "g", "kind": "HETEROGENEOUS", "members": members}}
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps(tree | {"server": {"port": port}}), encoding="utf-8")
    with serving(str(path), "--data-dir", "data", directory=tmp_path, port=port):
        found = seen(python, CLIENTS / "triton.py", f"127.0.0.1:{port}", "double")
    assert (found["server"], found["models"]) == ([True, True], [True, False])
    spec = {"datatype": "FP32", "shape": [-1, 3]}
    assert found["metadata"]["inputs"] == [{"name": "x", **spec}]
    assert found["answer"] == [[[2.0, 4.0, 6.0]], "7"]
    assert found["refused"] == ["400", "415"]
