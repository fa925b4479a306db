"""vLLM's own serving benchmark, unmodified, against the demo: adapters named by inference key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Server

pytestmark = pytest.mark.engine

# `vllm bench serve` without its launcher, which the CPU build cannot start.
BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


def test_vllm_serving_benchmark_runs_over_the_adapters(
    demo: Server, base_dir: Path, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-c", BENCH),
        *("--base-url", demo.url, "--backend", "openai", "--endpoint", "/v1/completions"),
        *("--model", "base", "--tokenizer", str(base_dir), "--lora-modules", "sql", "triage"),
        *("--dataset-name", "random", "--random-input-len", "24", "--random-output-len", "8"),
        *("--num-prompts", "8", "--max-concurrency", "4", "--seed", "0", "--disable-tqdm"),
        *("--save-result", "--save-detailed", "--result-dir", str(tmp_path)),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert result["completed"] == 8
    assert not any(result["errors"])
    assert all(length == 8 for length in result["output_lens"])
