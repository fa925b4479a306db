"""The shipped evaluation sets are what their README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stacked.config import Design, load_set
from stacked.experiments.scores import scores_of

ROOT = Path(__file__).parents[2]
SETS = sorted((ROOT / "evals").glob("*.yaml"))


def test_the_sql_examples_are_those_that_the_readme_draws() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "evals" / "README.md").read_text(), re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == (ROOT / "evals" / "sql.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_shipped_set_is_a_gate_whose_expected_answers_are_right(path: Path) -> None:
    config = load_set(path)
    assert Design(gates=(config,)).gates == (config,)
    for example, score in zip(config.examples, scores_of(config, {}), strict=True):
        assert score(f"{example.expected};") == 1
        assert score("SELECT 1") == 0
