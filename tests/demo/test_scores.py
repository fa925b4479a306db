"""The shipped adapters have learnt: scored on held-out examples through the running server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT
from tests.serving import Server

pytestmark = pytest.mark.engine


def score(demo: Server, tmp_path: Path, key: str, task: str, n: int) -> float:
    """The mean score of `adapters/score.py` over `n` held-out examples."""
    result = tmp_path / f"{key}-{task}.json"
    command = [
        *(sys.executable, str(ROOT / "adapters" / "score.py"), "--url", demo.url),
        *("--key", key, "--task", task, "--n", str(n), "--json", str(result)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return float(json.loads(result.read_text(encoding="utf-8"))["score"])


@pytest.mark.parametrize(("key", "task"), [("sql", "sql"), ("triage", "triage")])
def test_adapter_answers_held_out_examples_and_the_base_does_not(
    demo: Server, tmp_path: Path, key: str, task: str
) -> None:
    # 40 examples: an adapter that truly scores 0.9 falls below 0.75 in under 1 of 100 draws, and
    # the draw is seeded. The cards have the scores over all held-out examples.
    assert score(demo, tmp_path, key, task, 40) >= 0.75
    assert score(demo, tmp_path, "base", task, 16) <= 0.1


def test_second_version_of_sql_is_better_than_the_first(demo: Server, tmp_path: Path) -> None:
    first, second = (score(demo, tmp_path, key, "sql", 24) for key in ("sql-v1", "sql"))
    assert second >= first + 0.15
