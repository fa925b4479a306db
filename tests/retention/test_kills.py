"""`kill -9` in the middle of a collection, at 20 points: what is needed is whole, the rest goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from stacked.core import check_digest
from stacked.registry import ModelState, Query
from tests.retention.ground import Ground

POINTS = 20


def check(data_dir: Path, needed: set[str]) -> None:
    """Everything that a record names is in the store, whole; rounds end what was begun."""
    ground = Ground(data_dir)
    with ground.registry.retention.sweep(dry_run=True) as sweep:
        named = sweep.named()
    there = ground.digests()
    assert needed <= there
    for digest in named & there:
        ground.store.verify(digest)
    adapters = ground.registry.models.list(Query(limit=100), kind="adapter").items
    for model in adapters:
        if model.state is not ModelState.DELETED:
            ground.store.verify(check_digest(model.digest))
    while ground.collect().unfinished:
        pass
    assert ground.digests() == needed
    assert os.listdir(ground.store.root / "staging") == []
    assert os.listdir(ground.store.root / "pins") == []
    ground.registry.close()


def test_killed_at_any_point_it_loses_nothing_that_is_needed(tmp_path: Path) -> None:
    data_dir = tmp_path / "0"
    ground = Ground(data_dir)
    ground.stock()
    models = [ground.register(seed) for seed in range(8)]
    for model in models:
        ground.deploy(ground.group(model))
    for seed in (20, 21):
        ground.catalogue.delete(ground.register(seed).id)
    for model in models[:2]:
        ground.catalogue.open(model.id)[1].close()  # packed, so that there is a file of it
    needed = {model.digest for model in models[-3:]}
    ground.registry.close()
    for point in range(1, POINTS + 1):
        shutil.copytree(data_dir, tmp_path / str(point))
    command = [sys.executable, "-m", "tests.retention.killed", str(tmp_path), str(POINTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills = [int(line) for line in done.stdout.split()[1:]]
    assert len(set(kills)) == POINTS, "each at another operation"
    for point in range(POINTS + 1):
        check(tmp_path / str(point), needed)
