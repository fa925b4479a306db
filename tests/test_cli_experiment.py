"""`stacked experiment`: how results are shown. Promotion is shown on a real server."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from stacked.cli import app
from tests.wire import wire

PHASE: dict[str, Any] = {
    "phase": "0a1b2c",
    "served": True,
    "began": "2026-01-01T10:00:00.000Z",
    "last": "2026-01-01T12:30:00.000Z",
    "arms": [
        {"key": "v1", "share": 0.5, "digest": "sha256:" + "1" * 64, "units": 1200, "answers": 4000},
        {"key": "v2", "share": 0.5, "digest": "sha256:" + "2" * 64, "units": 1180, "answers": 3900},
    ],
    "drawn": 12,
    "dropped": 0,
}
BOUNDS = {"value": 0.125, "low": 0.05, "high": 0.2}
CONTROL = {"arm": "v1", "units": 900, "mean": 0.5, "bounds": {**BOUNDS, "low": 0.4, "high": 0.6}}
REPORT = {
    "key": "[bold]sql",
    "served": True,
    "phase": {
        **PHASE,
        "sampleRatio": 0.4,
        "mismatch": False,
        "metrics": [
            {
                "metric": "correct",
                "feedback": True,
                "share": True,
                "lowerIsBetter": False,
                "sentences": ["v2 is better than v1."],
                "arms": [
                    {**CONTROL, "difference": None, "verdict": None, "unitsNeeded": None},
                    {
                        **CONTROL,
                        "arm": "v2",
                        "mean": 0.625,
                        "difference": BOUNDS,
                        "verdict": "better",
                        "unitsNeeded": None,
                    },
                ],
            }
        ],
    },
    "others": [{**PHASE, "phase": "ffee00", "served": False}],
}


def shown(*arguments: str, answer: Any = REPORT, code: int = 0) -> tuple[str, str]:
    """The words of what is printed, and the path of what was asked."""
    with wire() as told:
        told.answer = answer
        done = CliRunner().invoke(app, ["experiment", *arguments, "--url", told.url])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split()), told.path


def test_the_arms_are_compared_in_a_table_with_sentences() -> None:
    text, path = shown("show", "sql", "--metric", "correct", "--phase", "0a1b2c")
    assert path == "/stacked/experiments/sql?phase=0a1b2c&metric=correct"
    assert "[bold]sql" in text
    assert "0a1b2c, served, since 2026-01-01 10:00:00 UTC" in text
    assert "2,380 with 7,900 answers" in text
    assert "left out 12 answers without a unit" in text
    assert "earlier ffee00" in text
    assert "correct v1 900 50.0% 40.0%…60.0%" in text
    assert "▲ v2 900 62.5% 40.0%…60.0% +12.5% +5.0%…+20.0% better" in text
    assert text.endswith("v2 is better than v1.")


def test_a_mismatch_is_said_before_any_result() -> None:
    doubted: Any = copy.deepcopy(REPORT)
    doubted["phase"] |= {"mismatch": True, "sampleRatio": 1e-6}
    text, _ = shown("show", "sql", answer=doubted)
    assert "came otherwise than by weight (p = 1e-06)" in text
    assert text.index("contradict the weights") < text.index("v2 is better than v1.")


def test_an_experiment_without_units_says_so() -> None:
    empty: Any = copy.deepcopy(REPORT)
    (metric,) = empty["phase"]["metrics"]
    metric["sentences"] = ["No unit has 'correct' yet."]
    for arm in metric["arms"]:
        arm |= {"units": 0, "mean": None, "bounds": None, "difference": None, "verdict": None}
    for arm in empty["phase"]["arms"]:
        arm |= {"units": 0, "answers": 0}
    text, _ = shown("show", "sql", answer=empty)
    assert text.endswith("No unit has been answered in this phase yet.")


def test_it_is_printed_as_json_as_the_server_said_it() -> None:
    text, path = shown("show", "sql/v1", "--json")
    assert path == "/stacked/experiments/sql%2Fv1"
    assert json.loads(text) == REPORT


@pytest.mark.parametrize("as_json", [False, True])
def test_all_are_listed(as_json: bool) -> None:
    items = [{"key": "sql", "served": True, "phase": PHASE}]
    text, path = shown("list", *["--json"] * as_json, answer={"items": items})
    assert path == "/stacked/experiments"
    if as_json:
        assert json.loads(text) == items
    else:
        assert "● sql 2,380 7,900 v1 50% v2 50% 2026-01-01 12:30:00" in text
