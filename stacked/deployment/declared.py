"""What a configuration file declares, checked: its base, and its group of adapters from the store.

It must not know records or what is served.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from stacked.bases import base_digest, resolve
from stacked.config import Config, MemberConfig
from stacked.core import Adapter, Base, Member, ModelGroup, ModelId, model_id_of
from stacked.engine.adaptable import Asking
from stacked.errors import StackedError
from stacked.steps import Counted, Progress, Start
from stacked.store import AdapterStore, BaseModules


@dataclass(frozen=True, slots=True)
class DeclaredBase:
    """A file's base, and what adapters of it are checked against."""

    base: Base
    modules: BaseModules


async def read_base(config: Config, data_dir: Path, store: Path) -> DeclaredBase:
    """Find the file's base; `store` is the store's directory. Raises BaseNotFound."""
    directory = await asyncio.to_thread(resolve, config.base.model, data_dir)
    modules = await asyncio.to_thread(BaseModules.read, directory)
    asking = Asking(directory, config.engine, store / "engine")
    modules = replace(modules, engine=asking)
    given, digest = config.base, base_digest(directory)
    model_id = ModelId(given.id) if given.id else model_id_of(digest)
    return DeclaredBase(Base(model_id, given.key, str(directory), digest), modules)


async def read_group(
    config: Config, base: DeclaredBase, store: AdapterStore, tell: Progress
) -> ModelGroup:
    """Check the file's members and keep them in the store.

    Raises the error of the first that is refused, its place in the file put before the sentence.
    """
    listed = config.group.members
    members: list[Member] = []
    count = Counted(tell, Start.CHECK, len(listed))
    for at, entry in enumerate(listed, start=1):
        count(at)
        try:
            foreign = entry.foreign_tokens or config.server.foreign_tokens
            adapter = await asyncio.to_thread(
                store.add, entry.source, base=base.modules, foreign_tokens=foreign
            )
        except StackedError as error:
            # The same class, so that its code and status stay; the sentence gains the place.
            name = entry.key or entry.id or entry.source
            raise type(error)(f"group.members[{at - 1}] ({name}): {error}") from error
        members.append(_member(entry, adapter))
    return ModelGroup(config.group.name, base.base, tuple(members), config.group.metadata)


def written(config: Config) -> str:
    """What the file says of base and group, to tell whether it was edited."""
    text = config.model_dump_json(include={"base", "group"})
    return hashlib.sha256(text.encode()).hexdigest()


def _member(entry: MemberConfig, adapter: Adapter) -> Member:
    model_id = ModelId(entry.id) if entry.id else model_id_of(adapter.digest)
    return Member(model_id, adapter, entry.key)
