"""What a configuration file declares, checked: its base, and its group of adapters from the store.

It must not know records or what is served.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

from stacked.bases import base_digest, resolve
from stacked.config import Config, MemberConfig
from stacked.core import Adapter, Base, Member, ModelGroup, ModelId, Progress, model_id_of
from stacked.engine.adaptable import Asking
from stacked.errors import StackedError
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
    count = _Count(tell)
    for at, entry in enumerate(listed, start=1):
        count.step("Checking adapters", at, len(listed))
        try:
            adapter = await asyncio.to_thread(store.add, entry.source, base=base.modules)
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


class _Count:
    """A step of many like it: told at most once a second, as a group may have 500."""

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._told = 0.0

    def step(self, text: str, at: int, of: int) -> None:
        now = time.monotonic()
        if at in (1, of) or now - self._told >= 1.0:
            self._told = now
            self._tell.step(f"{text} {at}/{of}")
