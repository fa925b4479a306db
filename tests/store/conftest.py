"""Fixtures of the store's tests: one base, one adapter, one store."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.store import AdapterStore, BaseModules
from tests.store.small import write_adapter, write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModules:
    return BaseModules.read(write_base(tmp_path_factory.mktemp("base") / "small"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")
