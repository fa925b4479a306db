"""The example, a script that people copy, on a server that has the real engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TinyModels
from tests.contract.world import C, World
from tests.servers import Signed

pytestmark = pytest.mark.engine

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "oci_sdk.py"


def test_the_example_walks_from_an_upload_to_a_live_update(
    world: World, signed: Signed, tiny_models: TinyModels
) -> None:
    world.retire()  # one deployment serves at a time
    adapters = tiny_models.adapters
    command = [sys.executable, str(EXAMPLE), "--endpoint", signed.server.url]
    command += ["--config-file", str(signed.config_file), "--base", str(tiny_models.base)]
    command += ["--adapter", f"one={adapters['a']}", "--adapter", f"two={adapters['b']}"]
    command += ["--replacement", str(adapters["c"]), "--params", "--max-model-len 512"]
    done = subprocess.run([*command, "--cleanup"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    assert told.count("(the same three ways)") == 6
    answers = [line for line in told.splitlines() if "three ways" in line]
    before, after = answers[:3], answers[3:]
    assert (before[0], before[2]) == (after[0], after[2])  # the base and `two` go on
    assert before[1] != after[1]  # `one` is another model now
    assert told.count("SUCCESS") == 3
    assert "Cleaning up" in told
    assert "ACTIVE" not in {
        row.lifecycle_state for row in world.control.list_model_deployments(C).data
    }
