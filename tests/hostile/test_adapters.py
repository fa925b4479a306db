"""Mutants of an adapter: each is refused by one of our errors, or is an adapter. The long form of
this, with an engine that loads those, is `python -m tests.hostile.run`."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.store import patterns
from tests.hostile.ground import Ground
from tests.store.small import write_adapter, write_base

COUNT = 200


def test_every_mutant_is_refused_or_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 1.0)
    base, healthy = write_base(tmp_path / "base"), write_adapter(tmp_path / "healthy")
    ground = Ground(tmp_path, base, healthy, seed=13)
    for number in range(COUNT):
        ground.check(number)
        ground.drop(number)
    assert ground.faults == []
    assert ground.astray() == []
    refused = {code for kind, code in ground.counts if kind == "refused"}
    assert len(refused) >= 10, "mutants reach many checks"
    assert ground.counts["passed", ""] >= COUNT // 10, "and some are served"
