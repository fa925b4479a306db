"""A registry in a fresh directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacked.registry import Registry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "registry.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with Registry(path) as opened:
        yield opened
