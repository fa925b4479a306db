"""Files of earlier versions are brought forward or refused; what is no registry is left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stacked.errors import RegistryUnusable
from stacked.registry import Registry
from stacked.registry.migrations import FIRST, STEPS, migrate
from tests.registry.samples import group, stocked


def add_color(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE models ADD COLUMN color TEXT NOT NULL DEFAULT 'blue'")


def add_size(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE models ADD COLUMN size INTEGER NOT NULL DEFAULT 7")


def fail_after_work(connection: sqlite3.Connection) -> None:
    add_color(connection)
    connection.execute("DELETE FROM models")
    raise sqlite3.OperationalError("disk I/O error")


def break_a_reference(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM models")


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [f"version {version(path)}", *connection.iterdump()]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.fixture
def first(path: Path) -> Path:
    """A file of the first version, with rows that refer to each other."""
    with Registry(path) as registry:
        stocked(registry, 3)
        registry.groups.create(group(0, 1))
    return path


def test_empty_file_becomes_a_registry(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Registry(path) as registry:
        assert registry.models.list().items == ()
    assert version(path) == FIRST + len(STEPS)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_steps_bring_a_file_forward_with_its_rows(first: Path) -> None:
    migrate(first, busy_seconds=1, steps=[add_color])
    assert version(first) == FIRST + 1
    for _ in range(2):  # what a file has is not done twice
        migrate(first, busy_seconds=1, steps=[add_color, add_size])
        assert version(first) == FIRST + 2
    with closing(sqlite3.connect(first)) as connection:
        found = connection.execute("SELECT count(*), min(color), min(size) FROM models").fetchone()
    assert found == (4, "blue", 7)


@pytest.mark.parametrize(
    ("step", "error"),
    [(fail_after_work, sqlite3.OperationalError), (break_a_reference, RegistryUnusable)],
)
def test_step_that_fails_leaves_the_old_file(first: Path, step: Any, error: Any) -> None:
    before = dump(first)
    with pytest.raises(error):
        migrate(first, busy_seconds=1, steps=[add_size, step])
    assert dump(first) == before


def test_file_of_a_newer_version_is_refused_and_left_alone(first: Path) -> None:
    newer = FIRST + len(STEPS) + 1
    migrate(first, busy_seconds=1, steps=(*STEPS, add_color))
    before = dump(first)
    with pytest.raises(RegistryUnusable, match=f"version {newer}.*up to version {newer - 1}"):
        Registry(first)
    assert dump(first) == before


@pytest.mark.parametrize("old", range(1, FIRST))
def test_file_from_before_the_first_release_is_refused_and_left_alone(
    first: Path, old: int
) -> None:
    with closing(sqlite3.connect(first)) as connection:
        connection.execute(f"PRAGMA user_version = {old}")
    before = dump(first)
    with pytest.raises(RegistryUnusable, match=f"version {old}, which was never.*move the file"):
        Registry(first)
    assert dump(first) == before


def test_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE diary (text)")
    before = path.read_bytes()
    with pytest.raises(RegistryUnusable, match="not a registry"):
        Registry(path)
    assert path.read_bytes() == before
