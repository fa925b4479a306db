"""`stacked usage`: what it requests, and how it shows it."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from stacked.cli import app
from tests.wire import wire

LINE = {"requests": 1200, "errors": 3, "promptTokens": 45000, "generatedTokens": 6}
REPORT = {
    "since": "2026-01-01T00:00:00.000Z",
    "items": [
        {"credential": "alice", "key": "sql", **LINE},
        {"credential": "[bold]", "key": "", **LINE},
    ],
}


def test_usage_is_a_table_or_json() -> None:
    with wire() as told:
        told.answer = REPORT
        shown = CliRunner().invoke(app, ["usage", "--url", told.url])
        assert shown.exit_code == 0, shown.output
        assert told.path == "/stacked/usage?since=7d"
        assert "alice sql 1,200 3 45,000 6" in " ".join(shown.output.split())
        assert "[bold]" in shown.output
        more = ["--since", "30d", "--by", "key", "--json", "--url", told.url]
        printed = CliRunner().invoke(app, ["usage", *more])
        assert told.path == "/stacked/usage?since=30d&by=key"
    assert json.loads(printed.output) == REPORT
