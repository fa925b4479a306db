"""One short benchmark with real engines: the command as a user types it, on the tiny base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.long]


def test_offline_benchmark_runs_with_lora_off_and_on(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"figures.{kind}" for kind in ("json", "md", "svg")}
    command = [
        *(sys.executable, "-m", "stacked", "bench", "offline", "--base", "tiny"),
        *("--adapters", "0,slots+1", "--slots", "1", "--batch", "2", "--requests", "4"),
        *("--prompt-tokens", "8", "--output-tokens", "8", "--rounds", "1", "--together"),
        *("--engine", "max_model_len=64", "--engine", "kv_cache_memory_bytes=67108864"),
        *("--json", files["json"], "--table", files["md"], "--plot", files["svg"]),
    ]
    environment = {**os.environ, "STACKED_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads(files["json"].read_text())
    assert [(row["side"], row["row"]) for row in kept["rows"]] == [
        ("off", "base"),
        ("on", "base"),
        ("on", "2 adapters, uniform"),
    ]
    assert all(row["tokens_per_second"]["median"] > 0 for row in kept["rows"])
    assert all(row["ratio"]["median"] > 0 for row in kept["rows"][1:])
    assert all(each["output_tokens"] == 4 * 8 for each in kept["each"])
    assert "of LoRA off" in done.stdout
    assert "stacked-bench-" not in files["json"].read_text()  # its own scratch directory
    assert files["svg"].read_text().startswith("<?xml")
    assert "| LoRA off | base |" in files["md"].read_text()
