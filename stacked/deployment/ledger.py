"""The records behind one server: what is registered at start, and what deployments are made of.

Between the registry's rows and the core's nouns. One ledger per process and group name; it must not
know the engine, HTTP or argv.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from stacked.config import CARDS, Design, StorageConfig
from stacked.core import (
    Base,
    Code,
    Member,
    ModelGroup,
    ModelId,
    Runtime,
    check_digest,
)
from stacked.deployment.settling import settle
from stacked.errors import (
    ConfigInvalid,
    RecordConflict,
    RegistryUnusable,
    StackedError,
    UpdateNotLive,
)
from stacked.fleet.shared import Fleet
from stacked.registry import (
    Affected,
    DeployedMember,
    Deployment,
    DeploymentState,
    GroupRecord,
    GroupState,
    MemberState,
    Query,
    Registry,
    Shared,
    WorkRequest,
    lock_data_dir,
)
from stacked.registry.composition import HOMOGENEOUS
from stacked.registry.fleets import FleetStore, fleet_of
from stacked.registry.places import FILE, note_database, place_of
from stacked.store import AdapterStore, ModelStore

ENTITY = "data-science-model-deployment"

# States in which the committed group is what was served, also after a kill.
_SERVED = (DeploymentState.ACTIVE, DeploymentState.NEEDS_ATTENTION, DeploymentState.FAILED)

logger = logging.getLogger("stacked.deployment.ledger")

T = TypeVar("T")


class Ledger:
    """The registry of one group name, locked for the life of this process: a file in the data
    directory, or a schema of a database. `lease`: of a fleet's servers, which share it.

    Raises DataDirInUse if another process serves the same name from the same place.
    """

    def __init__(
        self,
        data_dir: Path,
        name: str,
        store: AdapterStore,
        models: ModelStore,
        storage: StorageConfig,
        *,
        lease: float | None = None,
    ) -> None:
        self.directory = data_dir / "deployments" / _slug(name)
        """The directory of the records and what belongs to them, used only by this process."""
        self.artifacts = self.directory / "artifacts"
        self._lock = lock_data_dir(self.directory)
        self.path = self.directory / FILE
        self.fleet: FleetStore | None = None
        """What this server shares with the others of its fleet."""
        try:
            self._open(storage, lease)
        except BaseException:
            self._lock.close()
            raise
        self._store = store
        self._models = models
        # One thread, so that writes stay in order and no disk blocks the loop.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    def _open(self, storage: StorageConfig, lease: float | None) -> None:
        """Raises RegistryUnusable, also for a file that has lost what was in it; ConfigInvalid."""
        shared = lease is not None
        place = place_of(self.directory, storage.database_url, storage.connections)
        if shared and isinstance(place, Path):
            raise ConfigInvalid(
                "the servers of a fleet share a database; set storage.database, STACKED_DATABASE, "
                "or --join postgresql://USER@HOST/NAME"
            )
        if self.artifacts.exists() and self.path.exists() and not self.path.stat().st_size:
            raise RegistryUnusable(
                f"the registry {self.path} is empty, and was not; restore it from a copy, or "
                "remove it to begin anew"
            )
        registry = Registry(place)
        try:
            registry.claim(shared=shared, lease=lease or 0.0)
            note_database(self.directory, place)
            if shared and isinstance(place, Shared):
                numbers = {"owner": registry.owner, "process": registry.process}
                self.fleet = FleetStore(fleet_of(place), **numbers)
            self.registry = registry
            self._recover(registry.last_fleet(), shared)
        except BaseException:
            registry.close()
            if self.fleet is not None:
                self.fleet.close()
            raise

    def _recover(self, fleet: Fleet | None, shared: bool) -> None:
        """What a fleet had committed last is in none of its records, if all of it was killed."""
        held = self.last_active() if fleet is not None else None
        if fleet is not None and held is not None:
            settle(self.registry, held.id, fleet, gone=not shared)
        # An update that is under way is ended by the fleet.
        self.registry.recover({fleet.proposal} if fleet is not None and shared else ())

    def close(self) -> None:
        """Finish what is being written. Closing twice is allowed."""
        self._writer.shutdown(wait=True)
        self.registry.close()
        if self.fleet is not None:
            self.fleet.close()
        self._lock.close()

    # -- start ------------------------------------------------------------------------------

    def last_active(self) -> Deployment | None:
        """The deployment that a restart serves: the one that served when this process ended.

        One that failed after it had served is tried again. In a fleet, the others serve it.
        """
        found = [
            one
            for state in (*_SERVED, DeploymentState.UPDATING)
            for one in self._deployments(state=state)
            if one.group_id is not None
        ]
        return max(
            found,
            key=lambda one: (one.state is not DeploymentState.FAILED, one.time_updated),
            default=None,
        )

    def of_file(self) -> Deployment | None:
        """The deployment of a config file, which a later start continues."""
        found = (
            one
            for one in self._deployments()
            if "declared" in one.configuration and one.state is not DeploymentState.DELETED
        )
        return next(found, None)

    def _deployments(self, **filters: Any) -> Iterator[Deployment]:
        query = Query()
        while True:
            page = self.registry.deployments.list(query, **filters)
            yield from page.items
            if page.next is None:
                return
            query = Query(page=page.next)

    def set_aside(self, served: str | None, reason: str) -> None:
        """One deployment serves on one machine: every other one is INACTIVE, with the reason."""
        for state in _SERVED:
            for one in list(self._deployments(state=state)):
                if one.id != served and one.group_id is not None:
                    self.registry.deployments.set_state(one.id, DeploymentState.INACTIVE, reason)

    def member_states(
        self, group_id: str, state: MemberState = MemberState.SUCCESS, reason: str = ""
    ) -> list[DeployedMember]:
        """The members of a group, the base among them, all of them in one state."""
        members = self.registry.groups.get(group_id).members
        return [
            DeployedMember(model_id=entry.model_id, key=entry.key, state=state, reason=reason)
            for entry in members
        ]

    # -- deaths of engines ------------------------------------------------------------------

    def died(self, id: str, reason: str) -> None:
        """Nothing serves this deployment now; in a fleet others do, and this server's status says
        what it lacks.
        """
        if self.fleet is not None:
            return
        state = self.registry.deployments.get(id).state
        if state is DeploymentState.FAILED:  # a state is not written twice in a row
            self.registry.deployments.set_state(id, DeploymentState.UPDATING)
        if state in _SERVED:
            self.registry.deployments.set_state(id, DeploymentState.FAILED, reason)

    def came_back(self, id: str, quarantined: Mapping[str, str]) -> None:
        """Another engine serves it, as `served`; in a fleet, that is nothing new to the others."""
        if self.fleet is None:
            self.served(id, quarantined)

    def served(self, id: str, quarantined: Mapping[str, str]) -> None:
        """A deployment's committed group is served, but for models: model id -> why not."""
        record = self.registry.deployments.get(id)
        assert record.group_id is not None, "a deployment that is served has a group"
        members = self.member_states(record.group_id)
        for at, member in enumerate(members):
            if why := quarantined.get(member.model_id):
                members[at] = replace(member, state=MemberState.FAILED, reason=why)
        self.registry.deployments.put_members(id, record.group_id, members)
        if record.state in (DeploymentState.FAILED, DeploymentState.INACTIVE):
            self.registry.deployments.set_state(id, DeploymentState.UPDATING)
        whys = [f"model {model_id} is not served: {why}" for model_id, why in quarantined.items()]
        after = DeploymentState.NEEDS_ATTENTION if whys else DeploymentState.ACTIVE
        if record.state is not after:
            self.registry.deployments.set_state(id, after, "; ".join(whys))

    def quarantined(self, deployment: Deployment) -> Mapping[str, str]:
        """The models of its committed group that engines died with: model id -> why."""
        found: dict[str, str] = {}
        query = Query() if deployment.group_id is not None else None
        while query is not None:
            members = self.registry.deployments.list_members
            page = members(deployment.id, query, state=MemberState.FAILED)
            found |= {member.model_id: member.reason for member in page.items}
            query = Query(page=page.next) if page.next else None
        return found

    # -- groups -----------------------------------------------------------------------------

    def wanted(self, group_id: str, base: Base | None) -> ModelGroup:
        """A recorded group with what its members are; it may call its base by another key.

        Raises RecordAbsent, AdapterAbsent, GroupInvalid, UpdateNotLive where its base is another;
        NotAllowed, ParameterInvalid and RecordConflict for models without a base.
        """
        record = self.registry.groups.get(group_id)
        served = base.model_id if base else None
        if record.base_model_id != served:
            raise UpdateNotLive(
                f"group {group_id} is of base {record.base_model_id}, and {served} is "
                "served; another base needs a restart"
            )
        own = (base.key, base.model_id) if base else ("", "")
        keys = {
            each.key or (own[0] if each.model_id == own[1] else None) for each in record.members
        }
        gpus = self._gpus(record, Design.of(record.metadata).check(keys, record.kind))
        metadata = {**record.metadata, **Design(gpus=gpus).as_metadata()}
        if base is None:
            models = tuple(
                replace(each, content=each.content.on_cards(gpus.get(each.key or "", ())))
                for each in self._models_of(record)
            )
            return ModelGroup(record.display_name, None, models, metadata, record.kind)
        members = []
        for entry in record.members:
            if entry.model_id == base.model_id:
                base = replace(base, key=entry.key or base.key)
                continue
            model = self.registry.models.get(entry.model_id)
            adapter = self._store.get(check_digest(model.digest))
            members.append(Member(ModelId(entry.model_id), adapter, entry.key, entry.weight))
        return ModelGroup(record.display_name, base, tuple(members), metadata)

    def _gpus(self, group: GroupRecord, design: Design) -> dict[str, tuple[int, ...]]:
        """The cards of keys: as the group says, or else the model's own metadata."""
        found = self.registry.models.get_many([entry.model_id for entry in group.members])
        own = {id: model.metadata[CARDS] for id, model in found.items() if CARDS in model.metadata}
        keys = {entry.key: own[entry.model_id] for entry in group.members if entry.model_id in own}
        return design.with_cards({key: text for key, text in keys.items() if key}).gpus

    def _models_of(self, group: GroupRecord) -> Iterator[Member]:
        """The members of a group without a base, loaded by the code in its artifact if any."""
        code: Code | None = None
        for artifact in self.registry.artifacts.of(group.id):
            file = self.artifacts / artifact.sha256
            if self._models.shared is not None and not file.exists():
                incoming = self.artifacts / "incoming"
                self._models.shared.fetch_file(artifact.sha256, file, incoming)
            code = self._models.add_code(file, "the artifact of the group")
        alone = group.kind == HOMOGENEOUS and code is None
        models = self.registry.models.get_many([entry.model_id for entry in group.members])
        for entry in group.members:
            model = models[entry.model_id]
            digest = check_digest(model.digest)
            if alone and self._models.read(digest).runtime in (Runtime.SCORE, Runtime.DATA):
                raise RecordConflict(
                    f"model {model.id} is loaded by a score.py, and group {group.id} has no "
                    "artifact; upload one with score.py and runtime.yaml: POST "
                    f"…/modelGroups/{group.id}/artifact"
                )
            content = self._models.get(digest, code, f"model {model.id}")
            yield Member(ModelId(entry.model_id), content, entry.key, entry.weight)

    # -- deployments ------------------------------------------------------------------------

    def deployable(self, group_id: str) -> GroupRecord:
        """A group that may be deployed. Raises RecordAbsent, RecordConflict, and see `wanted`."""
        group = self.registry.groups.get(group_id)
        if group.state is not GroupState.ACTIVE:
            raise RecordConflict(f"group {group_id} is {group.state.value}; only ACTIVE ones serve")
        if group.kind != "STACKED":
            self.wanted(group_id, None)  # no engine is needed to see what of it cannot be served
        return group

    def open_work(
        self, operation: str, action: str, deployment: Deployment, group_id: str | None
    ) -> WorkRequest:
        """Record work on a deployment; it has begun in the answer."""
        of_group = [Affected("RELATED", "model-group", group_id)] if group_id else []
        uri = f"/20190101/modelDeployments/{deployment.id}"
        work = self.registry.work_requests.open(
            operation,
            [Affected(action, ENTITY, deployment.id, uri), *of_group],
            compartment_id=deployment.compartment_id,
        )
        return self.registry.work_requests.advance(work.id, 0.0, "accepted")

    async def do(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call this in the writing thread, after earlier calls; its result."""
        return await asyncio.wrap_future(self.write(partial(call, *args, **kwargs)))

    async def with_retry(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`do`, repeated while the disk fails: for what has happened already.

        A record that is never closed would stay in progress until a restart.
        """
        wait = 0.1
        while True:
            try:
                return await self.do(call, *args, **kwargs)
            except RegistryUnusable as error:
                logger.warning("the records cannot be written, trying again: %s", error)
            await asyncio.sleep(wait)
            wait = min(5.0, 2 * wait)

    def note(self, call: Callable[..., object], *args: Any) -> None:
        """Have this written, which serving does not depend on: a failure is logged."""

        def attempt() -> None:
            try:
                call(*args)
            except StackedError as error:
                logger.warning("the records do not show what is served: %s", error)

        self.write(attempt)

    def write(self, call: Callable[[], T]) -> Future[T]:
        """Call this in the writing thread, after earlier calls."""
        return self._writer.submit(call)


def _slug(name: str) -> str:
    """A directory name that is safe and different for different group names."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:40].strip(".") or "group"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
