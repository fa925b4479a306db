"""`stacked shadow`: what it requests, and how it shows it."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from stacked.cli import app
from tests.wire import wire

NOTHING = {"count": 0, "served": 0.0, "shadow": 0.0}
BY = {"value": 0.25, "low": -0.125, "high": 0.625}
LINE = {
    "key": "sql",
    "to": "[v3]",
    "servedDigest": "sha256:" + "a" * 64,
    "shadowDigest": "base",
    "copies": 12,
    "same": {"count": 5, "total": 10, "low": 0.2366, "high": 0.7634},
    "jsonSame": None,
    "logprob": {"count": 12, "served": -0.5, "shadow": -0.25, "difference": BY},
    "tokens": {**NOTHING, "count": 12, "served": 20.0, "shadow": 21.25},
    "seconds": NOTHING,
    "failed": {},
    "dropped": {"load": 3, "queue": 1},
}
REPORT = {"items": [LINE], "samples": []}


def test_shadow_is_a_table_or_json() -> None:
    with wire() as told:
        told.answer = REPORT
        shown = CliRunner().invoke(app, ["shadow", "--url", told.url], env={"COLUMNS": "300"})
        assert shown.exit_code == 0, shown.output
        assert told.path == "/stacked/shadow?samples=0"
        line = (
            "sql aaaaaaaaaaaa [v3] base 12 50% of 10 (24% to 76%) "
            "-0.500 / -0.250 (-0.125 to +0.625) 20.0 / 21.2 3 load, 1 queue"
        )
        assert line in " ".join(shown.output.split())
        printed = CliRunner().invoke(app, ["shadow", "--samples", "5", "--url", told.url])
        assert told.path == "/stacked/shadow?samples=5"
    assert json.loads(printed.output) == REPORT
