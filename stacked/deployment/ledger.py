"""The records behind one server: what is registered at start, and what deployments are made of.

Between the registry's rows and the core's nouns. One ledger per process and group name; it must not
know the engine, HTTP or argv.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from stacked.config import Design, StorageConfig
from stacked.core import (
    VERSIONED,
    Adapter,
    Base,
    Code,
    Member,
    ModelGroup,
    ModelId,
    Runtime,
    check_digest,
)
from stacked.errors import (
    RecordConflict,
    RegistryUnusable,
    StackedError,
    UpdateNotLive,
)
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    Affected,
    DeployedMember,
    Deployment,
    DeploymentState,
    GroupMember,
    GroupRecord,
    GroupState,
    MemberState,
    Model,
    Query,
    Registry,
    WorkRequest,
    lock_data_dir,
    new_id,
)
from stacked.registry.composition import HOMOGENEOUS
from stacked.registry.places import FILE, note_database, place_of
from stacked.store import AdapterStore, ModelStore

ENTITY = "data-science-model-deployment"

# States in which the committed group is what was served, also after a kill.
_SERVED = (DeploymentState.ACTIVE, DeploymentState.NEEDS_ATTENTION, DeploymentState.FAILED)

logger = logging.getLogger("stacked.deployment.ledger")

T = TypeVar("T")


class Ledger:
    """The registry of one group name, locked for the life of this process: a file in the data
    directory, or a schema of a database that is shared.

    Raises DataDirInUse if another process serves the same name from the same place.
    """

    def __init__(
        self,
        data_dir: Path,
        name: str,
        store: AdapterStore,
        models: ModelStore,
        storage: StorageConfig,
    ) -> None:
        self.directory = data_dir / "deployments" / _slug(name)
        """The directory of the records and what belongs to them, used only by this process."""
        self.artifacts = self.directory / "artifacts"
        self._lock = lock_data_dir(self.directory)
        self.path = self.directory / FILE
        try:
            self.registry = self._open(storage)
        except BaseException:
            self._lock.close()
            raise
        self._store = store
        self._models = models
        # One thread, so that writes stay in order and no disk blocks the loop.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    def _open(self, storage: StorageConfig) -> Registry:
        """Raises RegistryUnusable, also for a file that has lost what was in it."""
        place = place_of(self.directory, storage.database_url, storage.connections)
        if self.artifacts.exists() and self.path.exists() and not self.path.stat().st_size:
            raise RegistryUnusable(
                f"the registry {self.path} is empty, and was not; restore it from a copy, or "
                "remove it to begin anew"
            )
        registry = Registry(place)
        try:
            registry.claim()
            note_database(self.directory, place)
            registry.recover()
        except BaseException:
            registry.close()
            raise
        return registry

    def close(self) -> None:
        """Finish what is being written. Closing twice is allowed."""
        self._writer.shutdown(wait=True)
        self.registry.close()
        self._lock.close()

    # -- start ------------------------------------------------------------------------------

    def last_active(self) -> Deployment | None:
        """The deployment that a restart serves: the one that served when this process ended.

        One that failed after it had served is tried again.
        """
        found = [
            one
            for state in _SERVED
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

    def begin(
        self,
        held: Deployment | None,
        declared: ModelGroup | None,
        configuration: Mapping[str, Any],
        served: ModelGroup | None,
    ) -> Deployment:
        """Register base, members, group and deployment of a file; commit the group if it is new.

        `declared` is None if the config's adapters are gone: what it declared before stays.
        `served` is None where the committed group is. Idempotent: the same config registers nothing
        twice.
        """
        if declared is not None:
            self._register(declared)
            if held is None:
                new = Deployment(id=new_id(DEPLOYMENT), display_name=declared.name)
                held = self.registry.deployments.create(new)
        assert held is not None, "a group that is not declared was committed before"
        held = self.registry.deployments.update(held.id, configuration=configuration)
        fresh = served is not None and held.group_id != group_id_of(served)
        quarantined = {} if fresh else self.quarantined(held)
        if served is not None and fresh:
            held = self._commit_first(held, group_id_of(served))
        self.set_aside(held.id, "the deployment of the configuration file is served")
        self.served(held.id, quarantined)
        return self.registry.deployments.get(held.id)

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
        """Nothing serves this deployment now."""
        state = self.registry.deployments.get(id).state
        if state is DeploymentState.FAILED:  # a state is not written twice in a row
            self.registry.deployments.set_state(id, DeploymentState.UPDATING)
        if state in _SERVED:
            self.registry.deployments.set_state(id, DeploymentState.FAILED, reason)

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

    def _register(self, group: ModelGroup) -> None:
        base = group.base
        models = [_model_record(member, base) for member in group]
        members = _entries(group.members)
        if base is not None:
            members = (GroupMember(base.model_id, base.key), *members)
            of_base = Model(
                id=base.model_id,
                kind="base",
                display_name=base.key,
                digest=base.digest,
                source=base.path,
            )
            models.insert(0, of_base)  # which the records of adapters name
        # Users may have changed a model's description since: a restart does not overwrite it.
        self.registry.models.put_all(
            list({model.id: model for model in models}.values()), describe=False
        )
        if base is not None:
            self._find_base_again(base)
        self.registry.groups.create(
            GroupRecord(
                id=group_id_of(group),
                display_name=group.name,
                kind=group.kind,
                base_model_id=base.model_id if base else None,
                members=members,
                tags={"freeform": VERSIONED},
                custom_metadata=tuple(
                    {"key": key, "value": value} for key, value in group.metadata.items()
                ),
            )
        )

    def _find_base_again(self, base: Base) -> None:
        """A base that was moved on this machine: later starts look where the file says it is."""
        stored = self.registry.models.get(base.model_id)
        if stored.source != base.path:
            self.registry.models.put(replace(stored, source=base.path))

    def _commit_first(self, held: Deployment, group_id: str) -> Deployment:
        operation = "MODEL_DEPLOYMENT_UPDATE" if held.group_id else "MODEL_DEPLOYMENT_CREATE"
        work = self.registry.work_requests.open(operation, [Affected("UPDATED", ENTITY, held.id)])
        self.registry.work_requests.advance(work.id, 1.0, "serving the group of the config file")
        if held.state is not DeploymentState.CREATING:
            self.registry.deployments.set_state(held.id, DeploymentState.UPDATING)
        held = self.registry.deployments.commit(held.id, group_id, held.generation + 1, work.id)
        self.registry.work_requests.succeed(work.id)
        return held

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
        Design.of(record.metadata).check(keys, record.kind)
        if base is None:
            models = tuple(self._models_of(record))
            return ModelGroup(record.display_name, None, models, record.metadata, record.kind)
        members = []
        for entry in record.members:
            if entry.model_id == base.model_id:
                base = replace(base, key=entry.key or base.key)
                continue
            model = self.registry.models.get(entry.model_id)
            adapter = self._store.get(check_digest(model.digest))
            members.append(Member(ModelId(entry.model_id), adapter, entry.key, entry.weight))
        return ModelGroup(record.display_name, base, tuple(members), record.metadata)

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


def group_id_of(group: ModelGroup) -> str:
    """The id of the group that a config declares: the same content, the same id."""
    content = {
        "base": [group.base.model_id, group.base.key] if group.base else group.kind,
        "name": group.name,
        "members": [[m.model_id, m.content.digest, m.key, m.weight] for m in group],
        "metadata": dict(group.metadata),
    }
    text = json.dumps(content, sort_keys=True).encode()
    return f"ocid1.{GROUP}.oc1..{hashlib.sha256(text).hexdigest()}"


def _model_record(member: Member, base: Base | None) -> Model:
    """The record of a member's model; an adapter was checked against this base."""
    content = member.content
    return Model(
        id=member.model_id,
        kind="adapter" if base else "model",
        display_name=member.label,
        digest=content.digest,
        rank=Adapter.of(content).rank if base else 0,
        bytes=content.bytes,
        base_model_id=base.model_id if base else None,
        tags={"freeform": VERSIONED},
    )


def _entries(members: Sequence[Member]) -> tuple[GroupMember, ...]:
    return tuple(GroupMember(member.model_id, member.key, member.weight) for member in members)


def _slug(name: str) -> str:
    """A directory name that is safe and different for different group names."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:40].strip(".") or "group"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
