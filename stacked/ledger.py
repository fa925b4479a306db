"""The records of one served group: what is registered at start, and how an update is written down.

Between the registry's rows and the core's nouns. One ledger per process and group name; it must not
know the engine, HTTP or argv.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stacked.core import Base, Digest, Member, ModelGroup, ModelId, check_digest, check_key
from stacked.errors import GroupInvalid, StackedError, UpdateNotLive
from stacked.live import Phase
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    Affected,
    DeployedMember,
    Deployment,
    DeploymentState,
    GroupMember,
    MemberState,
    Model,
    Registry,
    WorkRequest,
    lock_data_dir,
    new_id,
)
from stacked.registry import ModelGroup as GroupRecord
from stacked.store import AdapterStore

# Where each phase of an update begins on the way to 100; a phase's own share is spread over it.
_BEGINS = {
    Phase.PLAN: 0.0,
    Phase.STAGE: 2.0,
    Phase.VERIFY: 60.0,
    Phase.COMMIT: 75.0,
    Phase.SWITCH: 80.0,
    Phase.DRAIN: 82.0,
    Phase.REMOVE: 95.0,
    Phase.DONE: 99.0,
}
_ENTITY = "data-science-model-deployment"


class Ledger:
    """The registry of one group name, locked for the life of this process.

    Raises DataDirInUse where another process serves the same name from the same data directory.
    """

    def __init__(self, data_dir: Path, name: str, store: AdapterStore) -> None:
        directory = data_dir / "deployments" / _slug(name)
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock_data_dir(directory)
        self.registry = Registry(directory / "registry.sqlite")
        self.registry.recover()
        self._store = store
        # One thread, so that what is written keeps its order and no disk holds up the loop.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        found = self.registry.list_deployments().items
        self.deployment: Deployment | None = found[0] if found else None

    def close(self) -> None:
        """Finish what is being written. Closing twice is allowed."""
        self._writer.shutdown(wait=True)
        self.registry.close()
        self._lock.release()

    # -- start ------------------------------------------------------------------------------

    def committed(self, base: Base, declared: str | None, written: str) -> ModelGroup | None:
        """The group that a restart serves, unless the config now declares another one.

        `declared` is the id of the group that the config's members make, None where they could not
        be read: the config's own text then tells whether it is the one that was declared before.
        """
        held = self.deployment
        if held is None or held.group_id is None:
            return None
        same = (
            held.configuration.get("written") == written
            if declared is None
            else held.configuration.get("declared") == declared
        )
        return self.wanted(held.group_id, base) if same else None

    def is_other(self, declared: ModelGroup) -> bool:
        """Whether the committed group is not the declared one."""
        return self.deployment is not None and self.deployment.group_id != group_id_of(declared)

    def begin(
        self, declared: ModelGroup | None, configuration: Mapping[str, Any], served: ModelGroup
    ) -> Deployment:
        """Register base, members, group and deployment; commit the declared group where it is new.

        `declared` is None where the config's adapters are gone: what it declared before stands.
        Idempotent: the same config registers nothing twice.
        """
        held = self.deployment
        if declared is not None:
            self._register(declared)
            if held is None:
                new = Deployment(id=new_id(DEPLOYMENT), display_name=declared.name)
                held = self.registry.create_deployment(new)
            held = self.registry.put_deployment(replace(held, configuration=configuration))
        assert held is not None, "a group that is not declared was committed before"
        if declared is served and held.group_id != group_id_of(served):
            held = self._commit_first(held, group_id_of(served))
        elif held.state is not DeploymentState.ACTIVE:
            held = self.registry.set_deployment_state(held.id, DeploymentState.ACTIVE)
        self.deployment = held
        assert held.group_id is not None, "a deployment that serves has a group"
        fared = [_fared(member, MemberState.SUCCESS) for member in served]
        self.registry.put_member_states(held.id, held.group_id, fared)
        return held

    def _register(self, group: ModelGroup) -> None:
        base = group.base
        models = [
            Model(
                id=base.model_id,
                kind="base",
                display_name=base.key,
                digest=base.digest,
                source=base.path,
            )
        ]
        models += [model_record(member) for member in group]
        self.registry.put_models(list({model.id: model for model in models}.values()))
        members = (GroupMember(base.model_id, base.key), *_entries(group.members))
        self.registry.create_group(
            GroupRecord(
                id=group_id_of(group),
                display_name=group.name,
                base_model_id=base.model_id,
                members=members,
                custom_metadata=tuple(
                    {"key": key, "value": value} for key, value in group.metadata.items()
                ),
            )
        )

    def _commit_first(self, held: Deployment, group_id: str) -> Deployment:
        operation = "MODEL_DEPLOYMENT_UPDATE" if held.group_id else "MODEL_DEPLOYMENT_CREATE"
        work = self.registry.open_work_request(operation, [Affected("UPDATED", _ENTITY, held.id)])
        self.registry.advance(work.id, 1.0, "serving the group of the config file")
        if held.state is not DeploymentState.CREATING:
            self.registry.set_deployment_state(held.id, DeploymentState.UPDATING)
        held = self.registry.commit_group(held.id, group_id, held.generation + 1, work.id)
        self.registry.succeed(work.id)
        return held

    # -- groups -----------------------------------------------------------------------------

    def wanted(self, group_id: str, base: Base) -> ModelGroup:
        """A recorded group with its adapters from the store.

        Raises RecordAbsent, AdapterAbsent, and UpdateNotLive where its base is another.
        """
        record = self.registry.get_group(group_id)
        if record.base_model_id != base.model_id:
            raise UpdateNotLive(
                f"group {group_id} is of base {record.base_model_id}, and {base.model_id} is "
                "served; another base needs a restart"
            )
        members = []
        for entry in record.members:
            if entry.model_id == base.model_id:
                if entry.key not in (None, base.key):
                    raise UpdateNotLive(
                        f"group {group_id} calls the base {entry.key!r}, and {base.key!r} is "
                        "served; another key of the base needs a restart"
                    )
                continue
            model = self.registry.get_model(entry.model_id)
            adapter = self._store.get(check_digest(model.digest))
            members.append(Member(ModelId(entry.model_id), adapter, entry.key))
        metadata = {str(item.get("key")): str(item.get("value")) for item in record.custom_metadata}
        return ModelGroup(record.display_name, base, tuple(members), metadata)

    def create_group(self, record: GroupRecord, base: Base) -> GroupRecord:
        """Record a group after checking it whole. Raises GroupInvalid, RecordAbsent."""
        ids = {entry.model_id for entry in record.members}
        if base.model_id not in ids:
            raise GroupInvalid(f"the base {base.model_id} must be a member of a STACKED group")
        keys = [check_key(entry.key) for entry in record.members if entry.key is not None]
        if len(keys) != len(set(keys)):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise GroupInvalid(f"inference key {twice!r} is used twice; keys are unique in a group")
        return self.registry.create_group(record)

    # -- updates ----------------------------------------------------------------------------

    def open_update(self, group_id: str) -> WorkRequest:
        """Record that an update to this group begins. Raises IllegalMove while one is under way."""
        assert self.deployment is not None, "an update needs a deployment"
        held = self.deployment.id
        self.registry.set_deployment_state(held, DeploymentState.UPDATING, f"to {group_id}")
        work = self.registry.open_work_request(
            "MODEL_DEPLOYMENT_UPDATE",
            [Affected("UPDATED", _ENTITY, held), Affected("RELATED", "model-group", group_id)],
        )
        return self.registry.advance(work.id, 0.0, "accepted")

    def journal(self, work: WorkRequest, group_id: str, wanted: ModelGroup) -> UpdateJournal:
        assert self.deployment is not None, "an update needs a deployment"
        return UpdateJournal(self, work.id, self.deployment.id, group_id, wanted)

    def write(self, call: Any) -> Future[Any]:
        """Do this in the writing thread, after what was asked before."""
        return self._writer.submit(call)


class UpdateJournal:
    """One update's own lines: progress as it goes, the commit, and the end."""

    def __init__(
        self, ledger: Ledger, work_id: str, deployment_id: str, group_id: str, wanted: ModelGroup
    ) -> None:
        self._ledger = ledger
        self._registry = ledger.registry
        self._work_id = work_id
        self._deployment_id = deployment_id
        self._group_id = group_id
        self._wanted = wanted
        self._blamed: dict[Digest, StackedError] = {}

    def phase(self, phase: Phase, done: float, text: str) -> None:
        begins = list(_BEGINS.values())
        at = list(_BEGINS).index(phase)
        ends = begins[at + 1] if at + 1 < len(begins) else begins[at]
        percent = begins[at] + (ends - begins[at]) * done
        line = f"{phase.value}: {text}"
        self._ledger.write(partial(self._registry.advance, self._work_id, percent, line))

    def refused(self, adapter: Digest, error: StackedError) -> None:
        self._blamed[adapter] = error

    async def commit(self, generation: int) -> None:
        call = partial(
            self._registry.commit_group,
            self._deployment_id,
            self._group_id,
            generation,
            self._work_id,
        )
        self._ledger.deployment = await asyncio.wrap_future(self._ledger.write(call))

    async def succeeded(self, text: str) -> None:
        self._states()
        await self._last(partial(self._registry.succeed, self._work_id, text))

    async def failed(self, error: StackedError) -> None:
        """Write every model's own reason, then the whole; the deployment serves on."""
        for member in self._wanted:
            blame = self._blamed.get(member.adapter.digest)
            if blame is not None:
                told = (self._work_id, blame.code, str(blame), member.model_id)
                self._ledger.write(partial(self._registry.add_error, *told))
        self._states()
        active = partial(
            self._registry.set_deployment_state,
            self._deployment_id,
            DeploymentState.ACTIVE,
            f"the update to {self._group_id} failed: {error}",
        )
        self._ledger.write(active)
        await self._last(partial(self._registry.fail, self._work_id, error.code, str(error)))

    def _states(self) -> None:
        members = [
            _fared(
                member,
                MemberState.FAILED
                if member.adapter.digest in self._blamed
                else MemberState.SUCCESS,
                str(self._blamed.get(member.adapter.digest, "")),
            )
            for member in self._wanted
        ]
        put = self._registry.put_member_states
        self._ledger.write(partial(put, self._deployment_id, self._group_id, members))

    async def _last(self, call: Any) -> None:
        await asyncio.wrap_future(self._ledger.write(call))


def group_id_of(group: ModelGroup) -> str:
    """The id of the group that a config declares: the same content, the same id."""
    content = {
        "base": [group.base.model_id, group.base.key],
        "name": group.name,
        "members": [[m.model_id, m.adapter.digest, m.key] for m in group],
        "metadata": dict(group.metadata),
    }
    text = json.dumps(content, sort_keys=True).encode()
    return f"ocid1.{GROUP}.oc1..{hashlib.sha256(text).hexdigest()}"


def model_record(member: Member, source: str = "", display_name: str = "") -> Model:
    """The record of a member's model."""
    adapter = member.adapter
    return Model(
        id=member.model_id,
        kind="adapter",
        display_name=display_name or member.label,
        digest=adapter.digest,
        source=source,
        rank=adapter.rank,
        bytes=adapter.bytes,
    )


def _entries(members: Sequence[Member]) -> tuple[GroupMember, ...]:
    return tuple(GroupMember(member.model_id, member.key) for member in members)


def _fared(member: Member, state: MemberState, reason: str = "") -> DeployedMember:
    return DeployedMember(model_id=member.model_id, key=member.key, state=state, reason=reason)


def _slug(name: str) -> str:
    """A directory name that is safe and different for different group names."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:40].strip(".") or "group"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
