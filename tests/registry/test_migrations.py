"""Registries of earlier versions are brought forward or refused; what is none is left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, Table, select
from sqlalchemy.exc import DBAPIError

from stacked.errors import RegistryUnusable
from stacked.registry import Registry, Shared
from stacked.registry.migrations import FIRST, STEPS, migrate
from stacked.registry.postgresql import Postgresql
from stacked.registry.sqlite import Sqlite
from tests.postgres import Postgres
from tests.registry.samples import group, stocked

Store = Sqlite | Postgresql


def add_color(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE models ADD COLUMN color TEXT NOT NULL DEFAULT 'blue'")


def add_size(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE models ADD COLUMN size INTEGER NOT NULL DEFAULT 7")


def fail_after_work(connection: Connection) -> None:
    add_color(connection)
    connection.exec_driver_sql("UPDATE models SET display_name = 'lost'")
    connection.exec_driver_sql("SELECT nothing FROM nowhere")


def break_a_reference(connection: Connection) -> None:
    connection.exec_driver_sql("DELETE FROM models")


@pytest.fixture
def first(where: Path | Shared) -> Store:
    """A registry of the first version, with rows that refer to each other."""
    with Registry(where) as registry:
        stocked(registry, 3)
        registry.groups.create(group(0, 1))
    return store_of(where)


def store_of(where: Path | Shared) -> Store:
    return Sqlite(where, 1) if isinstance(where, Path) else Postgresql(where, 1)


def dump(store: Store) -> list[Any]:
    """The version, and every table with its rows."""
    with store.transaction(write=True) as connection:
        there = MetaData()
        there.reflect(connection, schema=getattr(store, "schema", None))
        tables = sorted(there.tables.values(), key=lambda table: table.name)
        rows = [(table.name, [*table.c.keys()], rows_of(connection, table)) for table in tables]
        return [store.version(connection), *rows]


def rows_of(connection: Connection, table: Table) -> list[Any]:
    return sorted(map(str, connection.execute(select(table)).all()))


def version(store: Store) -> int | None:
    with store.transaction(write=False) as connection:
        return store.version(connection)


def set_version(store: Store, version: int) -> None:
    with store.transaction(write=True) as connection:
        store.set_version(connection, version)


def test_empty_file_becomes_a_registry(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Registry(path) as registry:
        assert registry.models.list().items == ()
    assert version(store_of(path)) == FIRST + len(STEPS)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_schema_that_an_administrator_has_made_becomes_a_registry(postgres: Postgres) -> None:
    place = postgres.shared()
    postgres.run(f'CREATE SCHEMA "{place.schema}"')
    with Registry(place) as registry:
        assert registry.models.list().items == ()
    assert version(store_of(place)) == FIRST + len(STEPS)


def test_steps_bring_a_registry_forward_with_its_rows(first: Store) -> None:
    migrate(first, [add_color])
    assert version(first) == FIRST + 1
    for _ in range(2):  # what is done is not done twice
        migrate(first, [add_color, add_size])
        assert version(first) == FIRST + 2
    found = next(rows for name, _, rows in dump(first)[1:] if name == "models")
    assert len(found) == 4
    assert all(row.endswith("'blue', 7)") for row in found)


def test_step_that_fails_leaves_what_was_there(first: Store) -> None:
    before = dump(first)
    with pytest.raises(DBAPIError):
        migrate(first, [add_size, fail_after_work])
    assert dump(first) == before


def test_step_that_breaks_a_reference_leaves_what_was_there(first: Store) -> None:
    before = dump(first)
    with pytest.raises((RegistryUnusable, DBAPIError), match=r"could not be brought|foreign key"):
        migrate(first, [add_size, break_a_reference])
    assert dump(first) == before


def test_registry_of_a_newer_version_is_refused_and_left_alone(
    first: Store, where: Path | Shared
) -> None:
    newer = FIRST + len(STEPS) + 1
    migrate(first, (*STEPS, add_color))
    before = dump(first)
    with pytest.raises(RegistryUnusable, match=f"version {newer}.*up to version {newer - 1}"):
        Registry(where)
    assert dump(first) == before


@pytest.mark.parametrize("old", [1, FIRST - 1])
def test_registry_from_before_the_first_release_is_refused_and_left_alone(
    first: Store, where: Path | Shared, old: int
) -> None:
    set_version(first, old)
    before = dump(first)
    with pytest.raises(RegistryUnusable, match=f"version {old}, which was never.*move it away"):
        Registry(where)
    assert dump(first) == before


def test_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE diary (text)")
    before = path.read_bytes()
    with pytest.raises(RegistryUnusable, match="not a registry"):
        Registry(path)
    assert path.read_bytes() == before


def test_schema_of_something_else_is_refused(postgres: Postgres) -> None:
    place = postgres.shared()
    postgres.run(f'CREATE SCHEMA "{place.schema}"; CREATE TABLE "{place.schema}".diary (text text)')
    with pytest.raises(RegistryUnusable, match="something else"):
        Registry(place)
