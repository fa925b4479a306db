"""P7 on real engines: the base answers as with LoRA off, and each adapter as if it were alone.

It must not run an engine itself: the matrix runs once in a process of its own, because vLLM settles
its platform and its threads once per process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stacked.engine.platform import KERNEL

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("p7") / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.p7_matrix", str(out)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    print(
        f"\nP7: {len(found['engines'])} engines, {found['batches']} mixed batches, "
        f"{found['base_answers']} base answers, {found['adapter_answers']} adapter answers, "
        f"{found['prompt_scores']} scored prompts, {found['seconds']} s"
    )
    return found


def test_the_engine_runs_our_kernel(report: dict[str, Any]) -> None:
    assert report["kernel"] == KERNEL


def test_the_matrix_tried_every_kind_of_engine(report: dict[str, Any]) -> None:
    tried = set(report["engines"])
    for slots in (1, 2, 4):
        assert f"untied base, linear, max_loras {slots}" in tried
        assert f"untied base, heads, max_loras {slots}" in tried
    assert "tied base, heads, max_loras 2" in tried
    assert report["base_answers"] >= 400
    assert report["adapter_answers"] >= 400


def test_no_answer_hangs_on_rounding(report: dict[str, Any]) -> None:
    """Each greedy choice has a margin, so that a difference means a wrong weight."""
    assert report["smallest_margin"] > 1e-4
    assert report["distinct_answers"] >= 0.95 * report["alone_answers"]


def test_base_answers_are_those_of_an_engine_without_lora(report: dict[str, Any]) -> None:
    assert report["wrong"]["base"] == []


def test_adapter_answers_do_not_depend_on_the_batch(report: dict[str, Any]) -> None:
    assert report["wrong"]["alone"] == []


def test_adapter_answers_are_those_of_transformers_and_peft(report: dict[str, Any]) -> None:
    assert report["wrong"]["peft"] == []


def test_prompt_scores_are_those_of_the_request_alone(report: dict[str, Any]) -> None:
    assert report["prompt_scores"] >= 200
    assert report["wrong"]["prompt scores"] == []
