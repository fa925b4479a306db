"""`stacked fleet status` and the options of `stacked serve` that join a fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stacked.api import server
from stacked.cli import app
from stacked.config import ControlConfig
from tests.wire import wire

MEMBER = {
    "name": "one",
    "id": "one/a/1",
    "generation": 3,
    "gate": "refused",
    "reason": "[no] room",
    "silentSeconds": 0.4,
    "lacking": {"ocid1.m": "it [died]"},
}
REPORT = {
    "replica": "two",
    "mode": "global",
    "generation": 3,
    "groupId": "ocid1.g",
    "update": {
        "number": 4,
        "stage": "ABORTED",
        "groupId": None,
        "workRequestId": "ocid1.w",
        "coordinator": "two",
        "reason": "replica one: [no] room",
    },
    "members": [MEMBER, {**MEMBER, "name": "two", "gate": "open", "reason": "", "lacking": {}}],
}
URL = "postgresql://me:secret@db/x"


def test_status_is_the_fleet_and_a_line_for_each_replica_or_json() -> None:
    with wire() as asked:
        asked.answer = REPORT
        shown = CliRunner().invoke(app, ["fleet", "status", "--url", asked.url])
        assert asked.path == "/stacked/fleet"
        printed = CliRunner().invoke(app, ["fleet", "status", "--json", "--url", asked.url])
    assert shown.exit_code == 0, shown.output
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert "update ABORTED: replica one: [no] room" in lines
    assert "one 3 refused 0.4 s ago [no] room" in lines
    assert "two 3 open 0.4 s ago" in lines
    assert [line for line in lines if "ocid1.m" in line] == ["one ocid1.m it [died]"]
    assert json.loads(printed.output) == REPORT


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[ControlConfig]:
    """The configurations of servers that were to run."""
    found: list[ControlConfig] = []

    def run(config: ControlConfig, **_: Any) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr(server, "run", run)
    return found


def serve(tmp_path: Path, text: str, *options: str) -> Any:
    path = tmp_path / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return CliRunner().invoke(app, ["serve", str(path), *options])


def test_join_names_the_database_and_begins_a_fleet(
    tmp_path: Path, ran: list[ControlConfig]
) -> None:
    assert serve(tmp_path, "base: {model: m}", "--join", URL, "--replica", "r-1").exit_code == 0
    (config,) = ran
    assert config.storage.database_url == URL
    assert config.fleet is not None
    assert config.fleet.replica_name == "r-1"


def test_what_the_file_says_of_fleet_and_storage_stays(
    tmp_path: Path, ran: list[ControlConfig]
) -> None:
    text = (
        "base: {model: m}\nfleet: {mode: session, lease_seconds: 6}\n"
        "storage: {database: 'postgresql://file/x', contents: 's3://b/c'}"
    )
    assert serve(tmp_path, text, "--replica", "r-1").exit_code == 0
    assert serve(tmp_path, text, "--join", URL).exit_code == 0
    named, joined = ran
    assert named.fleet is not None
    assert joined.fleet is not None
    assert named.storage.database_url == "postgresql://file/x"
    assert joined.storage.database_url == URL
    assert {named.storage.contents, joined.storage.contents} == {"s3://b/c"}
    assert {named.fleet.lease_seconds, joined.fleet.lease_seconds} == {6.0}
    assert (named.fleet.replica, joined.fleet.replica) == ("r-1", None)


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--replica", "a"), "give --join too"), (("--join", URL, "--replica", "a b"), "pattern")],
)
def test_what_names_no_replica_is_refused(
    tmp_path: Path, ran: list[ControlConfig], options: tuple[str, ...], said: str
) -> None:
    answer = serve(tmp_path, "base: {model: m}", *options)
    assert said in str(answer.exception)
    assert "secret" not in str(answer.exception)
    assert ran == []
