"""Stored files that are no longer what they were are told from those that are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stacked.core import Adapter
from stacked.errors import StoreDamaged
from stacked.store import AdapterStore, BaseModules
from stacked.store.checks import check_content
from tests.store.small import write_adapter


@pytest.fixture
def stored(tmp_path: Path, base: BaseModules) -> Adapter:
    source = write_adapter(tmp_path / "adapter")
    adapter = AdapterStore(tmp_path / "store").add(str(source), base=base)
    adapter.path.chmod(0o755)
    for file in adapter.path.iterdir():
        file.chmod(0o644)
    return adapter


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_what_was_added_is_what_it_was(stored: Adapter) -> None:
    check_content(stored)


@pytest.mark.parametrize("damage", [Path.unlink, flipped], ids=["missing", "flipped"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_changed_files_are_refused(
    stored: Adapter, name: str, damage: Callable[[Path], None]
) -> None:
    damage(stored.path / name)
    with pytest.raises(StoreDamaged, match="add it again from its source"):
        check_content(stored)


def test_another_rank_in_the_config_is_other_content(stored: Adapter) -> None:
    file = stored.path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha":', '"lora_alpha": 1, "was":', 1))
    with pytest.raises(StoreDamaged):
        check_content(stored)
