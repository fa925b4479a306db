"""`stacked gc`: what it tells, what it removes, and that it leaves a served directory alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stacked.cli import app
from stacked.cli.view import _disk
from stacked.errors import DataDirInUse, RegistryUnusable
from stacked.registry import Shared, lock_data_dir
from tests.postgres import Postgres
from tests.retention.ground import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """One model that is needed, and one that was deleted; nobody serves."""
    made = Ground(tmp_path)
    made.stock()
    made.register(1)
    made.catalogue.delete(made.register(2).id)
    made.registry.close()
    return made


def run(ground: Ground, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["gc", "--data-dir", str(ground.data_dir), *arguments])


def test_a_dry_run_says_what_would_go_and_why_the_rest_stays(ground: Ground) -> None:
    done = run(ground, "--dry-run")
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "would go adapters 1" in words
    assert "the models and groups that named it were deleted" in words
    assert "stays adapters 1" in words
    assert "a model or a group version names it" in words
    assert len(ground.digests()) == 2


def test_what_nobody_needs_is_removed_and_told_as_json(ground: Ground) -> None:
    done = run(ground, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    (line,) = (each for each in report["lines"] if each["freed"])
    assert (line["kind"], line["count"], line["bytes"]) == ("adapters", 1, report["freedBytes"])
    assert (report["dryRun"], report["unfinished"], report["notes"]) == (False, False, [])
    assert len(ground.digests()) == 1
    assert not any(each["freed"] for each in json.loads(run(ground, "--json").output)["lines"])


def test_the_settings_of_a_file_count(ground: Ground, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("retention: {deleted_records: 0s}")
    assert "deleted records" not in run(ground, "--json").output
    assert "deleted records" in run(ground, str(file), "--json").output


def test_a_directory_that_a_server_has_is_left_alone_and_the_way_is_told(ground: Ground) -> None:
    with lock_data_dir(ground.path.parent):
        done = run(ground)
    assert isinstance(done.exception, DataDirInUse)
    assert "stacked gc --url http://127.0.0.1:8080" in str(done.exception)
    assert len(ground.digests()) == 2


def test_status_says_what_is_stored_and_when_the_disk_fills_up() -> None:
    disk = {"freeBytes": 3 * 10**9, "totalBytes": 10**11, "storedBytes": 2 * 10**6, "low": False}
    assert _disk(disk) == "3.0 GB free, 2.0 MB stored"
    assert _disk({**disk, "low": True}).endswith("filling up, see: stacked gc --dry-run")
    assert _disk(None) == ""


def test_records_in_a_database_are_collected_where_it_is_named(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Shared(postgres.url(), f"stacked_{tmp_path.name}")
    ground = Ground(tmp_path, tmp_path.name, place)
    ground.stock()
    ground.register(1)
    ground.catalogue.delete(ground.register(2).id)
    ground.registry.close()
    refused = run(ground)
    assert isinstance(refused.exception, RegistryUnusable)
    assert "set storage.database or STACKED_DATABASE" in str(refused.exception)
    other = Ground(tmp_path, "other")  # a server of the same directory that knows no database
    (note,) = other.collect().notes
    assert "no content is removed" in note
    other.registry.close()
    shutil.rmtree(other.path.parent)
    assert len(ground.digests()) == 2
    monkeypatch.setenv("STACKED_DATABASE", postgres.url())
    done = run(ground, "--json")
    assert done.exit_code == 0, done.output
    assert len(ground.digests()) == 1
