"""What a file says of its members reaches the store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stacked.config import Config, StorageConfig, parse
from stacked.core import ModelGroup
from stacked.deployment.declared import begin
from stacked.deployment.from_file import read_base, read_group
from stacked.deployment.ledger import Ledger
from stacked.errors import TokensDiffer
from stacked.registry import DeploymentState
from stacked.steps import Silent
from stacked.store import AdapterStore, ModelStore
from tests.store.small import write_adapter, write_base, write_json


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A file with one member, whose tokenizer has a token that the base's lacks."""
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    write_json(base / "added_tokens.json", {"<s>": 0})
    write_json(adapter / "added_tokens.json", {"<think>": 40})
    member = {"source": str(adapter), "key": "think"}
    return {"base": {"model": str(base)}, "group": {"members": [member]}}


def read(config: Config, place: Path) -> ModelGroup:
    async def group() -> ModelGroup:
        base = await read_base(config, place, place / "store")
        return await read_group(config, base, AdapterStore(place / "store"), Silent())

    return asyncio.run(group())


def test_tokens_that_the_base_lacks_are_refused_with_the_members_place(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TokensDiffer, match=r"^group\.members\[0\] \(think\): its tokenizer has"):
        read(parse(tree, where="x", directory=tmp_path), tmp_path)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_member_or_the_server_may_accept_them(
    tree: dict[str, Any], tmp_path: Path, everywhere: bool
) -> None:
    place = tree.setdefault("server", {}) if everywhere else tree["group"]["members"][0]
    place["foreign_tokens"] = True
    assert len(read(parse(tree, where="x", directory=tmp_path), tmp_path).members) == 1


def test_a_file_is_recorded_in_an_empty_registry_and_once(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["server"] = {"foreign_tokens": True}
    group = read(parse(tree, where="x", directory=tmp_path), tmp_path)
    assert group.base is not None
    stores = AdapterStore(tmp_path), ModelStore(tmp_path / "models")
    ledger = Ledger(tmp_path / "data", "g", *stores, StorageConfig())
    configuration = {"declared": "it"}
    first = begin(ledger, None, group, configuration, group)
    assert (first.state, first.generation) == (DeploymentState.ACTIVE, 1)
    again = begin(ledger, ledger.of_file(), group, configuration, group)
    assert (again.id, again.generation) == (first.id, 1)
    (member,) = group.members
    stored = ledger.registry.models.get_many([member.model_id, group.base.model_id])
    assert stored[member.model_id].base_model_id == group.base.model_id
    assert stored[group.base.model_id].source == group.base.path
    ledger.close()
