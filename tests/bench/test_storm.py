"""The whole storm against a server without an engine: it passes a good one and finds each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stacked.bench import storm
from stacked.config import parse
from tests.bench.fake import Untold, serving_with


def run(fault: str, directory: Path, patch: pytest.MonkeyPatch, updates: int = 6) -> dict[str, Any]:
    patch.setattr(storm, "serving", serving_with(fault))
    members = [{"key": f"k{at}", "source": f"/adapters/{at}"} for at in range(6)]
    tree = {"base": {"model": "/models/base"}, "group": {"members": members}}
    config = parse(tree, where="test", directory=Path("/"))
    settings = storm.Settings(updates=updates, clients=8, groups=4, responses=50, max_tokens=8)
    return dict(storm.run_storm(config, settings, directory, Untold()).data)


def test_server_that_keeps_its_promises_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = run("", tmp_path, monkeypatch)
    assert figures["first_violations"] == []
    assert figures["violations"] == {}
    assert figures["updates"] >= 6
    assert figures["whole_answers"] >= 50
    assert figures["reference"] == {"answers": 80, "given_by_one_model_alone": [28, 28]}
    assert figures["generations_that_answered"] > 1
    assert figures["prompt_tokens_from_the_prefix_cache"] == 7
    assert set(figures["phases_seconds"]) >= {"planning", "staging", "switching", "whole update"}
    kinds = figures["requests_by_kind"]
    assert all(kinds[name] > 0 for name in ("plain", "stream", "of the base"))
    assert kinds["aborted in its answer"] > 0
    assert kinds["with a shared prefix"] > 0


def test_every_request_has_the_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKED_API_KEY", "stk_of_a_test")
    assert run("", tmp_path, monkeypatch, updates=2)["first_violations"] == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("error", "error"),
        ("cut", "error"),
        ("stale", "stale"),
        ("wrong", "wrong"),
        ("mixed", "mixed"),
        ("key", "key"),
        ("failed", "update"),
    ],
)
def test_each_fault_of_a_server_is_found(
    fault: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = run(fault, tmp_path, monkeypatch)
    assert figures["violations"].get(kind, 0) > 0, figures["first_violations"]
    assert set(figures["violations"]) == {kind}, figures["first_violations"]
