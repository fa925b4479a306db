"""From a recorded group and its settings to a running engine: what every start has in common.

It must not know who asked for the start, or which deployment it is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from stacked.catalogue import Catalogue
from stacked.core import ModelGroup
from stacked.deployment.ledger import Ledger
from stacked.deployment.serving import Known, Serving, plan_for
from stacked.deployment.settings import ServingSettings, read_settings
from stacked.engine.headroom import Room, room_beside
from stacked.engine.machine import look
from stacked.engine.plan import EnginePlan
from stacked.engine.support import require_build
from stacked.errors import ConfigInvalid
from stacked.steps import Progress
from stacked.store import BaseModules

DEFAULT_BASE_KEY = "base"

Commit = Callable[[], Awaitable[int]]
"""Makes a group durable; its generation."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is decided before an engine is started."""

    group: ModelGroup
    modules: BaseModules
    settings: ServingSettings
    plan: EnginePlan
    known: Known


class Starts(Protocol):
    """What a deployment needs to be started; see `Starter`."""

    async def prepare(self, group_id: str, configuration: Mapping[str, Any]) -> Prepared: ...
    async def start(self, prepared: Prepared, commit: Commit, tell: Progress) -> Serving: ...
    def room(self, running: Serving, coming: Prepared) -> Room: ...


class Starter:
    """Starts engines for the groups of one ledger."""

    def __init__(self, ledger: Ledger, catalogue: Catalogue, *, drain_seconds: float) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._drain_seconds = drain_seconds

    async def prepare(self, group_id: str, configuration: Mapping[str, Any]) -> Prepared:
        """Read the group and its base from disk, and plan. Starts nothing.

        Raises RecordAbsent, AdapterAbsent, BaseNotFound, ConfigInvalid, GroupImpossible.
        """
        return await asyncio.to_thread(self._prepare, group_id, configuration)

    def _prepare(self, group_id: str, configuration: Mapping[str, Any]) -> Prepared:
        settings = settings_of(configuration)
        record = self._ledger.registry.groups.get(group_id)
        base_id = record.base_model_id
        if base_id is None:
            raise ConfigInvalid(f"group {group_id} has no base")
        entry = next(member for member in record.members if member.model_id == base_id)
        base = self._catalogue.bases.base(base_id, base_key(base_id, entry.key, settings))
        modules = self._catalogue.bases.modules(self._ledger.registry.models.get(base_id))
        wanted = self._ledger.wanted(group_id, base)
        return plan(wanted, modules, settings, self._catalogue.store.root)

    async def start(self, prepared: Prepared, commit: Commit, tell: Progress) -> Serving:
        """See `Serving.start`."""
        return await start(prepared, commit, tell, drain_seconds=self._drain_seconds)

    def room(self, running: Serving, coming: Prepared) -> Room:
        """Whether the one that comes may start while the other runs."""
        return room_beside(running.plan, coming.plan, look())


def plan(
    group: ModelGroup, modules: BaseModules, settings: ServingSettings, store: Path
) -> Prepared:
    """Decide what the engine of a group is started with. Raises GroupImpossible and alike.

    `store` is the store's directory. What is loaded later is checked against this engine.
    """
    planned = plan_for(group, modules, settings.engine, require_build())
    known = Known.of(group.base, planned, store)
    return Prepared(group, replace(modules, engine=known.asking), settings, planned, known)


async def start(
    prepared: Prepared, commit: Commit, tell: Progress, *, drain_seconds: float
) -> Serving:
    """Show the plan and start what it says. See `Serving.start`."""
    tell.note(prepared.plan.text())
    return await Serving.start(
        prepared.group,
        prepared.plan,
        prepared.known,
        commit,
        drain_seconds=drain_seconds,
        progress=tell,
    )


def settings_of(configuration: Mapping[str, Any]) -> ServingSettings:
    """The settings in a deployment's configuration. Raises ConfigInvalid."""
    environment = configuration.get("environment") or {}
    variables = environment.get("environmentVariables") or {}
    found = read_settings(variables, configuration.get("engine") or {})
    return replace(found, base_key=found.base_key or configuration.get("base_key") or "")


def base_key(base_id: str, given: str | None, settings: ServingSettings) -> str:
    """How a group's base is called: as the group says, else as the deployment does.

    A LIVE update may have renamed it since `--served-model-name` was written. Raises ConfigInvalid
    where that names another base.
    """
    if settings.base_id and settings.base_id != base_id:
        raise ConfigInvalid(
            f"PARAMS: --served-model-name names model {settings.base_id}, and the base of the "
            f"group is {base_id}"
        )
    return given or settings.base_key or DEFAULT_BASE_KEY


def check_base_key(given: str | None, settings: ServingSettings) -> None:
    """Refuse an environment that is written for a base of another key. Raises ConfigInvalid."""
    if given and settings.base_key and settings.base_key != given:
        raise ConfigInvalid(
            f"PARAMS: --served-model-name calls the base {settings.base_key!r}, and the group "
            f"calls it {given!r}; it has one inference key"
        )
