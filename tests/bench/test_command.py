"""The commands: what they hand to the benchmarks, what they write, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stacked.bench import gaps, offline, online, start, storm
from stacked.bench.figures import Spread
from stacked.bench.report import Bar, Chart, Result
from stacked.bench.subject import Subject
from stacked.cli.bench import bench
from stacked.cli.measuring import command_line
from stacked.errors import ParameterInvalid

RESULT = Result(
    "offline",
    {"benchmark": "offline", "subject": {"base": "tiny"}},
    ["row", "tokens/s"],
    [["8 adapters", "180.0"]],
    [Chart("Throughput (tokens/s)", [Bar("8 adapters", "Stacked", Spread.of([180.0]))])],
    ["A note below."],
)


def invoke(*words: str) -> str:
    done = CliRunner().invoke(bench, [*words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Subject, Any]]:
    """What each benchmark was called with; none of them runs."""
    seen: dict[str, tuple[Subject, Any]] = {}

    def standing_in(name: str) -> Any:
        def run(subject: Subject, settings: Any, place: Path, tell: Any) -> Result:
            seen[name] = (subject, settings)
            return RESULT

        return run

    for module, name in ((offline, "offline"), (online, "online"), (start, "start")):
        monkeypatch.setattr(module, f"run_{name}", standing_in(name))
    monkeypatch.setattr(gaps, "run_gaps", standing_in("gaps"))
    return seen


def test_figures_are_shown_and_kept_in_three_forms(
    calls: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("f.json", "f.md", "f.svg")]
    flags = ["--json", str(files[0]), "--table", str(files[1]), "--plot", str(files[2])]
    invoke("offline", "--base", "tiny", "--adapters", "1,slots", "--slots", "2", *flags)
    kept = json.loads(files[0].read_text())
    assert kept["benchmark"] == "offline"
    assert "| 8 adapters | 180.0 |" in files[1].read_text()
    assert "tokens/s" in files[2].read_text()


def test_offline_makes_as_many_adapters_as_its_largest_row(calls: dict[str, Any]) -> None:
    invoke("offline", "--base", "tiny", "--slots", "2", "--max-adapters", "4", "--peer", "vllm")
    subject, settings = calls["offline"]
    assert [row.adapters for row in settings.rows] == [0, 1, 2, 3, 4]
    assert len(subject.adapters) == 4
    assert (settings.batch, settings.requests, settings.peer) == (8, 32, True)


def test_online_has_clients_and_rates(calls: dict[str, Any]) -> None:
    words = ["--base", "tiny", "--clients", "16,64", "--rates", "5", "--engine", "max_model_len=64"]
    invoke("online", *words)
    subject, settings = calls["online"]
    assert [load.name for load in settings.loads] == ["16 clients", "64 clients", "5 requests/s"]
    assert subject.engine == {"max_model_len": 64}
    assert settings.peer is False


def test_start_and_gaps_make_what_they_load(calls: dict[str, Any]) -> None:
    invoke("start", "--base", "tiny", "--groups", "1,5")
    subject, settings = calls["start"]
    assert (len(subject.adapters), settings.groups) == (5, [1, 5])
    invoke("swap", "--gaps", "--base", "tiny", "--adapters", "6", "--rank", "4")
    subject, settings = calls["gaps"]
    assert len(subject.adapters) == 7  # six are loaded beside the one that streams
    assert (subject.rank, subject.targets, settings.streams) == (4, "all-linear", 3)


def test_gaps_take_the_members_of_a_file(calls: dict[str, Any], tmp_path: Path) -> None:
    invoke("start", "--base", "tiny", "--groups", "1")
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text('{"r": 16}')
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    config = tmp_path / "c.yaml"
    config.write_text(f"base: {{model: {base}}}\ngroup: {{members: [{{source: {made}}}]}}\n")
    invoke("swap", str(config), "--gaps")
    subject, _ = calls["gaps"]
    assert (subject.base, list(subject.adapters), subject.rank) == (base, [made], 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["offline", "--base", "tiny", "--plot", "x.jpg"], r"\.svg or \.png"),
        (["offline", "--adapters", "some"], "not a number of adapters"),
        (["online", "--clients", ""], "at least one client"),
        (["online", "--engine", "fast"], "NAME=VALUE"),
        (["start", "--groups", "0"], "group sizes"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_begins(
    words: list[str], said: str, calls: dict[str, Any]
) -> None:
    with pytest.raises(ParameterInvalid, match=said):
        invoke(*words)
    assert not calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["offline", "--peer", "tgi"], "'tgi' is not"),
        (["swap", "--peer", "vllm"], "--gaps"),
        (["swap", "--base", "tiny", "--plot", "x.svg"], "--gaps"),
        (["swap", "c.yaml", "--adapter", "x"], "--adapter"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(words: list[str], said: str) -> None:
    done = CliRunner().invoke(bench, words, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 2
    assert said in done.output


def test_broken_promises_are_shown_and_end_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [["updates", "100"]]
    broken = Result("swap", {"updates": 100}, ("figure", "value"), rows, violations=["mixed: it"])
    monkeypatch.setattr(storm, "run_storm", lambda *_: broken)
    kept = tmp_path / "figures.json"
    done = CliRunner().invoke(bench, ["swap", "--base", "tiny", "--json", str(kept)])
    assert done.exit_code == 1
    assert json.loads(kept.read_text())["updates"] == 100
    assert "violation: mixed: it" in capfd.readouterr().err + done.output


def test_command_is_kept_without_where_its_figures_go(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "start --json /tmp/x.json --plot=/tmp/x.svg --groups 1 --note said --peer vllm"
    monkeypatch.setattr(sys, "argv", ["stacked", "bench", *words.split()])
    assert " ".join(command_line()) == "stacked bench start --groups 1 --peer vllm"


@pytest.mark.parametrize("name", ["offline", "online", "swap", "start"])
def test_every_command_helps_with_an_example(name: str) -> None:
    said = invoke(name, "--help")
    assert "Example:" in said
    assert "--json" in said
    assert "--plot" in said
