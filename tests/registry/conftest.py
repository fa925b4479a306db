"""A registry in a fresh directory, and in a fresh schema of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacked.registry import Registry, Shared


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "registry.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest) -> Path | Shared:
    """A place of a registry that is not there yet, of each kind."""
    if request.param == "sqlite":
        return request.getfixturevalue("path")
    return request.getfixturevalue("postgres").shared()


@pytest.fixture
def registry(where: Path | Shared) -> Iterator[Registry]:
    with Registry(where) as opened:
        yield opened
