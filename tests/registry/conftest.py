"""A registry in a fresh directory, and in a fresh schema of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacked.registry import Registry, Shared
from stacked.registry.schema import metadata
from tests.postgres import Postgres


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "registry.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest) -> Path | Shared:
    """A place of a registry that is not there yet, of each kind."""
    if request.param == "sqlite":
        return request.getfixturevalue("path")
    return request.getfixturevalue("postgres").shared()


@pytest.fixture(scope="session")
def emptied(postgres: Postgres) -> Shared:
    """A schema that is used again and again: to make one takes longer than most tests."""
    place = postgres.shared()
    Registry(place).close()
    return place


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, path: Path) -> Iterator[Registry]:
    """A registry of each kind, with nothing in it."""
    if request.param == "sqlite":
        with Registry(path) as opened:
            yield opened
        return
    place: Shared = request.getfixturevalue("emptied")
    tables = ", ".join(f'"{place.schema}"."{name}"' for name in metadata.tables)
    request.getfixturevalue("postgres").run(f"TRUNCATE {tables} RESTART IDENTITY")
    with Registry(place) as opened:
        yield opened
