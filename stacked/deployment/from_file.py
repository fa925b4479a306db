"""The deployment of a configuration file: what a process that starts with the file serves.

A file is served as written until its deployment is changed over the control plane; then as changed,
until the file changes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stacked.bases import base_digest, resolve
from stacked.catalogue import Catalogue
from stacked.config import Config, ControlConfig, MemberConfig
from stacked.core import Base, Content, Member, ModelGroup, ModelId, model_id_of
from stacked.deployment.activation import Active, Starter
from stacked.deployment.declared import begin, group_id_of
from stacked.deployment.joining import Joining
from stacked.deployment.ledger import Ledger
from stacked.engine.adaptable import Asking
from stacked.engine.creating import prepare
from stacked.engine.support import require_build
from stacked.errors import ConfigInvalid, StackedError
from stacked.logs import shown_url
from stacked.registry import Deployment
from stacked.serving import Prepared
from stacked.serving.settings import settings_of
from stacked.serving.vllm import VllmPrepared, VllmServing
from stacked.steps import Counted, Progress, Start
from stacked.store import AdapterStore, BaseModules, ModelStore
from stacked.store.files import real_path


@dataclass(frozen=True, slots=True)
class DeclaredBase:
    """A file's base, and what its adapters are checked against."""

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


class FileDeployment:
    """One file, and the records of what was served before."""

    def __init__(
        self,
        config: ControlConfig,
        base: DeclaredBase | None,
        ledger: Ledger,
        catalogue: Catalogue,
        store: AdapterStore,
    ) -> None:
        self._config = config
        self._base = base
        self._ledger = ledger
        self._store, self._models = store, catalogue.models
        self._starter = Starter(ledger, catalogue, config)
        self._joining: Joining | None = None
        if ledger.fleet is not None and config.fleet is not None:
            self._joining = Joining(ledger, ledger.fleet, config.fleet.mode)
        self._id = ""

    async def serve(self, tell: Progress) -> Active | Deployment:
        """Serve the file's deployment, or return another one served since the file changed.

        If the file's members are gone, the store still has the committed group. A server of a fleet
        serves what that has committed, whatever its own file says. Raises AdapterError,
        GroupImpossible, EngineError.
        """
        declared, problem = await self._declared(tell)
        if joined := await self._fleets():
            if not _is_same(joined, declared, self._config):
                tell.note(
                    "file        differs from what the fleet serves; stacked update --live FILE "
                    "brings it to all"
                )
            configuration = _configuration(self._config, declared, joined)
            return await self._join(joined, declared, configuration, tell)
        held = await asyncio.to_thread(self._ledger.of_file)
        last = await asyncio.to_thread(self._ledger.last_active)
        same = held is not None and _is_same(held, declared, self._config)
        if held is not None and same and last is not None and last.id != held.id:
            return last
        configuration = _configuration(self._config, declared, held if same else None)
        stands = held.group_id if held is not None and same else None
        served: ModelGroup | None = None
        if stands is not None and (declared is None or stands != group_id_of(declared)):
            prepared = await self._committed(stands, configuration)
            count = len(prepared.group.members)
            tell.note(f"group       {prepared.group.name}, as it was updated last ({count})")
        elif declared is not None:
            served = declared
            prepared = self._plan(served, configuration)
        else:
            assert problem is not None, "a group that is not declared has a problem"
            raise problem
        if held is not None and held.group_id in (stands, served and group_id_of(served)):
            prepared = prepared.without(await asyncio.to_thread(self._ledger.quarantined, held))
        commit = partial(self._register, held, declared, configuration, served, tell)
        serving = await self._starter.start(prepared, commit, tell)
        return Active(self._id, prepared.group.name, serving)

    async def _fleets(self) -> Deployment | None:
        """What the fleet serves; None: this server is in none, or founds it."""
        if self._joining is None:
            return None
        return await asyncio.to_thread(self._joining.committed)

    async def join(self, last: Deployment | None, tell: Progress) -> Active:
        """Serve what the fleet does, or found it with what was served last, without a file.

        Raises ConfigInvalid where nothing was, and as `serve`.
        """
        held = await self._fleets() or last
        if held is None:
            raise ConfigInvalid(
                "nothing is deployed in the records of this fleet; begin it with a file that has a "
                "base and members"
            )
        return await self._join(held, None, held.configuration, tell)

    async def _join(
        self,
        held: Deployment,
        declared: ModelGroup | None,
        configuration: Mapping[str, Any],
        tell: Progress,
    ) -> Active:
        group_id = str(held.group_id)
        if declared is not None and group_id == group_id_of(declared):
            prepared = self._plan(declared, configuration)
        else:
            prepared = await self._committed(group_id, configuration)
        commit = partial(self._found, group_id, partial(self._stands, held), tell)
        serving = await self._starter.start(prepared, commit, tell)
        return Active(self._id, prepared.group.name, serving)

    def _stands(self, held: Deployment) -> Deployment:
        """What was served last is served again."""
        self._ledger.set_aside(held.id, "another deployment was served when the server ended")
        self._ledger.served(held.id, {})
        return held

    async def _declared(self, tell: Progress) -> tuple[ModelGroup | None, StackedError | None]:
        try:
            if self._base is None:
                return await _read_models(self._config, self._models, tell), None
            return await read_group(self._config, self._base, self._store, tell), None
        except StackedError as error:
            return None, error

    async def _committed(self, group_id: str, configuration: Mapping[str, Any]) -> Prepared:
        """The committed group, with the file's base if it is of that."""
        record = await asyncio.to_thread(self._ledger.registry.groups.get, group_id)
        if self._base is None or record.base_model_id != self._base.base.model_id:
            return await self._starter.prepare(group_id, configuration)
        group = await asyncio.to_thread(self._ledger.wanted, group_id, self._base.base)
        return self._plan(group, configuration)

    def _plan(self, group: ModelGroup, configuration: Mapping[str, Any]) -> Prepared:
        settings = settings_of(configuration, group.kind)
        if self._base is None:
            return Prepared(group, settings)
        return VllmPrepared.of(group, self._base.modules, settings, self._store.root)

    async def _register(
        self,
        held: Deployment | None,
        declared: ModelGroup | None,
        configuration: Mapping[str, Any],
        served: ModelGroup | None,
        tell: Progress,
    ) -> int:
        """Record what is served, and return its generation."""
        record = partial(begin, self._ledger, held, declared, configuration, served)
        group_id = group_id_of(served) if served else str(held and held.group_id)
        return await self._found(group_id, record, tell)

    async def _found(self, group_id: str, record: Callable[[], Deployment], tell: Progress) -> int:
        """The same, unless a fleet has a deployment, which is this one's too."""
        if self._joining is not None:
            record = partial(self._joining.found, group_id, record)
        deployment = await asyncio.to_thread(record)
        self._id = deployment.id
        tell.note(f"deployment  {deployment.id}\ngroup       {deployment.group_id}")
        return deployment.generation


def _is_same(held: Deployment, declared: ModelGroup | None, config: ControlConfig) -> bool:
    """Whether a file still declares what it declared when its deployment was last begun.

    If its members can no longer be read, its own text decides.
    """
    if declared is None:
        return held.configuration.get("written") == written(config)
    return held.configuration.get("declared") == group_id_of(declared)


def _configuration(
    config: ControlConfig, declared: ModelGroup | None, held: Deployment | None
) -> dict[str, Any]:
    """What is stored of a file; `held`: its deployment, where changes of it still count."""
    before = held.configuration if held is not None else {}
    own = dict(config.engine)
    engine = own
    if before.get("file_engine", before.get("engine")) == own:
        engine = before.get("engine", own)
    return {
        "written": written(config),
        "declared": group_id_of(declared) if declared else before.get("declared"),
        "file_engine": own,
        "engine": engine,
        "base_key": config.base.key if isinstance(config, Config) else None,
        **{name: before.get(name) for name in ("environment", "infrastructure", "group")},
    }


async def serve_alone(
    config: Config, data_dir: Path, store: AdapterStore, needed: ExitStack, tell: Progress
) -> Active:
    """Serve a file's group without records of it; `needed` keeps it in the store."""
    require_build()
    prepare()
    base = await read_base(config, data_dir, store.root)
    needed.enter_context(store.pinned())
    group = await read_group(config, base, store, tell)
    settings = settings_of({"engine": config.engine})
    prepared = VllmPrepared.of(group, base.modules, settings, store.root)

    async def first() -> int:
        return 1

    serving = await VllmServing.start(prepared, first, config.server, tell)
    return Active("", group.name, serving)


async def read_group(
    config: ControlConfig, base: DeclaredBase, store: AdapterStore, tell: Progress
) -> ModelGroup:
    """Check the file's adapters and add them to the store; see `_read_all`."""

    def read(entry: MemberConfig) -> Content:
        foreign = entry.foreign_tokens or config.server.foreign_tokens
        return store.add(entry.source, base=base.modules, foreign_tokens=foreign)

    members = await _read_all(config, read, tell)
    return ModelGroup(config.group.name, base.base, members, config.group.recorded_metadata)


async def _read_models(config: ControlConfig, store: ModelStore, tell: Progress) -> ModelGroup:
    """The same for the models of a file without a base."""

    def read(entry: MemberConfig) -> Content:
        source = entry.source
        return store.get(store.add(real_path(Path(source)), source).digest, name=source)

    members, group = await _read_all(config, read, tell), config.group
    return ModelGroup(group.name, None, members, group.recorded_metadata, group.kind)


async def _read_all(
    config: ControlConfig, read: Callable[[MemberConfig], Content], tell: Progress
) -> tuple[Member, ...]:
    """Raises the error of the first that is refused, its place in the file before the sentence."""
    listed = config.group.members
    members: list[Member] = []
    count = Counted(tell, Start.CHECK, len(listed))
    for at, entry in enumerate(listed, start=1):
        count(at)
        try:
            content = await asyncio.to_thread(read, entry)
        except StackedError as error:
            # The same class, so that its code and status stay; the sentence gains the place.
            name = entry.key or entry.id or shown_url(entry.source)
            raise type(error)(f"group.members[{at - 1}] ({name}): {error}") from error
        model_id = ModelId(entry.id) if entry.id else model_id_of(content.digest)
        content = content.on_cards(config.group.gpus.get(entry.key or "", ()))
        members.append(Member(model_id, content, entry.key, entry.weight))
    return tuple(members)


def written(config: ControlConfig) -> str:
    """What the file says of base and group, to tell whether it was edited."""
    text = config.model_dump_json(include={"base", "group"})
    return hashlib.sha256(text.encode()).hexdigest()
