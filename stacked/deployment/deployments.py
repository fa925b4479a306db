"""The operations on deployments: in which state each is allowed, and its work request.

One deployment is active at a time, one change under way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from stacked.config import Design, GatesConfig
from stacked.core import Digest
from stacked.deployment.activation import Activation, Active, Slot, wanted_group
from stacked.deployment.bringing import wanted_live
from stacked.deployment.changes import Change, Changes
from stacked.deployment.fleet import FleetMember, Proposal
from stacked.deployment.gates import Gates
from stacked.deployment.journal import UpdateJournal
from stacked.deployment.ledger import Ledger
from stacked.errors import NotAllowed, NotReady, RecordAbsent, RecordConflict, UpdateNotLive
from stacked.registry import Deployment, DeploymentState, GroupRecord, WorkRequest
from stacked.registry.deployments import DeploymentChanges
from stacked.serving.settings import ServingSettings, base_key, check_base_key, settings_of

logger = logging.getLogger("stacked.deployment.deployments")

Json = Mapping[str, Any]

_CREATE, _UPDATE, _ACTIVATE, _DEACTIVATE, _DELETE = (
    f"MODEL_DEPLOYMENT_{verb}" for verb in ("CREATE", "UPDATE", "ACTIVATE", "DEACTIVATE", "DELETE")
)
_ACTIVE, _INACTIVE, _FAILED = (
    DeploymentState.ACTIVE,
    DeploymentState.INACTIVE,
    DeploymentState.FAILED,
)
NO_GATES = GatesConfig()
_SERVES = (_ACTIVE, DeploymentState.NEEDS_ATTENTION)


@dataclass(frozen=True, slots=True)
class Revision:
    """What an update changes. None is left unchanged; `described` never affects the engine."""

    group_id: str | None = None
    environment: Json | None = None
    live: bool = False
    described: DeploymentChanges = field(default_factory=DeploymentChanges)

    @property
    def describes_only(self) -> bool:
        return self.group_id is None and self.environment is None


class Deployments:
    """What is served, and the one place that changes it. `await close()` ends what it does.

    `defaults` are engine options that a deployment's environment does not set.
    """

    def __init__(
        self,
        ledger: Ledger,
        activation: Activation,
        slot: Slot,
        defaults: Json,
        gates: GatesConfig = NO_GATES,
    ) -> None:
        self._ledger = ledger
        self._registry = ledger.registry
        self._activation = activation
        self._slot = slot
        self._defaults = defaults
        self._changes = Changes(ledger)
        self.fleet: FleetMember | None = None
        """Where others serve the same deployment, which is then updated LIVE alone."""
        self.gates = Gates(gates)

    @property
    def running(self) -> Change | None:
        """The change that is under way."""
        return self._changes.running

    def check_served(self, id: str) -> None:
        """Raise RecordAbsent if this deployment serves no requests, NotReady if it will."""
        active, change = self._slot.occupant, self.running
        if active is not None and active.deployment_id == id:
            return
        if change is not None and change.deployment_id == id and active is None:
            raise NotReady(self._slot.reason)
        raise RecordAbsent(f"deployment {id} is not active here")

    async def wait(self) -> None:
        """Wait until the current change has ended."""
        await self._changes.wait()

    async def close(self) -> None:
        """Cancel the current change, and leave the fleet. Closing twice is allowed."""
        if self.fleet is not None:
            await self.fleet.leave()
        await self._changes.close()
        if self.fleet is not None:
            await self.fleet.close()

    # -- operations -------------------------------------------------------------------------

    async def create(self, new: Deployment) -> tuple[Deployment, WorkRequest]:
        """Record a deployment, and start serving its group; follow the work request.

        `new.configuration` has the `group`, and `environment` as it was given. Raises RecordAbsent,
        ConfigInvalid, ParameterInvalid, and RecordConflict while another deployment is active.
        """
        group_id = str(new.configuration["group"])
        self.check_single("deployments are not created")
        self._check_alone(new.id)
        async with self._changes.beginning():
            self._check_alone(new.id)
            group = await self._deployable(group_id)
            settings = settings_of({**new.configuration, "engine": self._defaults}, group.kind)
            _check_names(group, settings, named=True)
            engine = dict(settings.engine)
            new = replace(new, configuration={**new.configuration, "engine": engine})
            record = await self._ledger.do(self._registry.deployments.create, new)
            work = await self._open(_CREATE, "CREATED", record, group_id)
            change = Change(work, record.id)
            act = self._activation.bring_up(change, record, group_id, {})
            undo = partial(self._activation.not_created, record.id, group_id)
            self._changes.launch(change, act, undo)
        return record, work

    async def activate(self, id: str, expect: Deployment | None = None) -> WorkRequest:
        """Start serving a deployment's group. Raises RecordConflict, RecordAbsent."""
        self.check_single("deployments are not activated")
        self._check_alone(id)
        async with self._changes.beginning():
            self._check_alone(id)
            record = await self._in_state(id, (_INACTIVE, _FAILED), "activated")
            group_id = wanted_group(record)
            group = await self._deployable(group_id)
            _check_names(group, settings_of(record.configuration, group.kind))
            await self._enter(record, DeploymentState.UPDATING, "being activated", expect)
            work = await self._open(_ACTIVATE, "UPDATED", record, group_id)
            change = Change(work, id)
            act = self._activation.bring_up(change, record, group_id, {})
            self._changes.launch(change, act, partial(self._activation.back_to, id, _INACTIVE))
        return work

    async def deactivate(self, id: str, expect: Deployment | None = None) -> WorkRequest:
        """Stop serving: running requests may finish, the engine ends, the record stays."""
        self.check_single("the deployment is not deactivated")
        async with self._changes.beginning():
            record = await self._in_state(id, _SERVES, "deactivated")
            await self._enter(record, DeploymentState.UPDATING, "being deactivated", expect)
            work = await self._open(_DEACTIVATE, "UPDATED", record, record.group_id)
            act = self._activation.put_down(work, record, _INACTIVE)
            change = Change(work, id, "a deployment that is being stopped is stopped")
            self._changes.launch(change, act, partial(self._activation.back_to, id, _FAILED))
        return work

    async def delete(self, id: str, expect: Deployment | None = None) -> WorkRequest:
        """Stop serving, if it serves, and mark the record DELETED."""
        self.check_single("the deployment is not deleted")
        async with self._changes.beginning():
            record = await self._in_state(id, (*_SERVES, _INACTIVE, _FAILED), "deleted")
            await self._enter(record, DeploymentState.DELETING, "being deleted", expect)
            work = await self._open(_DELETE, "DELETED", record, record.group_id)
            act = self._activation.put_down(work, record, DeploymentState.DELETED)
            change = Change(work, id, "a deployment that is being deleted is deleted")
            self._changes.launch(change, act, partial(self._activation.back_to, id, _FAILED))
        return work

    async def update(
        self, id: str, revision: Revision, expect: Deployment | None = None
    ) -> WorkRequest:
        """Change what a deployment serves or is called; follow the work request.

        LIVE if the revision says so, otherwise with another engine; if INACTIVE, at the next
        activation. Raises RecordConflict, UpdateInProgress, UpdateNotLive, ConfigInvalid.
        """
        if revision.describes_only:
            return await self._describe(id, revision, expect)
        if self.fleet is not None and revision.live:
            await self.fleet.free()
        elif not revision.live:
            self.check_single("engines are not replaced")
        async with self._changes.beginning():
            record = await self._in_state(id, (*_SERVES, _INACTIVE), "updated")
            parts: dict[str, Any] = {}
            group = await self._deployable(revision.group_id or wanted_group(record))
            settings = before = settings_of(record.configuration, group.kind)
            if revision.environment is not None:
                parts = {"environment": revision.environment, "engine": self._defaults}
                settings = settings_of({**record.configuration, **parts}, group.kind)
                parts["engine"] = dict(settings.engine)
            # A name that the environment had before may be older than the group's.
            _check_names(group, settings, named=settings.base_key != before.base_key)
            if record.state is _INACTIVE:
                return await self._revise(record, revision, parts, expect)
            if revision.live:
                await self._check_kind(record, group)
                return await self._go_live(record, revision, settings, expect)
            return await self._replace(record, revision, parts, expect)

    async def cancel(self, work_id: str) -> None:
        """See `Changes.cancel`; in a fleet, at the replica where it was begun."""
        if self.fleet is not None:
            self.fleet.check_mine(work_id)
        await self._changes.cancel(work_id)

    async def resume(self, record: Deployment) -> None:
        """Serve again what was served when the process before this one ended; in the background."""
        async with self._changes.beginning():
            group_id = wanted_group(record)
            self._slot.reason = f"deployment {record.id} is starting again"
            await self._enter(record, DeploymentState.UPDATING, "starting again", None)
            work = await self._open(_UPDATE, "UPDATED", record, group_id)
            change = Change(work, record.id, "the server has started again; deactivate it instead")
            act = self._activation.bring_up(change, record, group_id, {}, again=True)
            self._changes.launch(change, act, partial(self._activation.back_to, record.id, _FAILED))

    async def again(self, lost: Active, quarantined: Mapping[Digest, str]) -> None:
        """Start another engine for what a lost one served, unless it is no longer to come back.

        Raises UpdateInProgress while something else is changed, EngineError if it does not come up.
        """
        async with self._changes.beginning():
            if self._slot.lost is lost:
                await self._activation.again(lost, quarantined)

    # -- guards -----------------------------------------------------------------------------

    def check_single(self, what: str) -> None:
        """Raises NotAllowed in a fleet."""
        if self.fleet is not None:
            raise NotAllowed(
                f"{what} in a fleet, whose replicas serve one deployment together; update it LIVE "
                "(updateType LIVE, or stacked update --live), or stop its replicas"
            )

    def _check_alone(self, id: str) -> None:
        """One deployment serves at a time on one machine."""
        active, change = self._slot.occupant, self.running
        if active is not None and active.deployment_id != id:
            raise RecordConflict(
                f"deployment {active.deployment_id} is active, and this machine serves one at a "
                "time; deactivate or delete that one first"
            )
        if change is not None and change.deployment_id != id:
            raise RecordConflict(
                f"deployment {change.deployment_id} is being changed, and this machine serves one "
                f"at a time; follow work request {change.work_id}"
            )

    async def _deployable(self, group_id: str) -> GroupRecord:
        """Refuse what the records show cannot be served, before anything is changed."""
        return await self._ledger.do(self._ledger.deployable, group_id)

    async def _check_kind(self, record: Deployment, group: GroupRecord) -> None:
        """Raises UpdateNotLive for a group of another kind than the served one."""
        served = await self._ledger.do(self._registry.groups.get, wanted_group(record))
        if served.kind != group.kind:
            raise UpdateNotLive(
                f"group {group.id} is {group.kind}, and the served one is {served.kind}; use "
                "updateType ZDT"
            )

    async def _in_state(
        self, id: str, allowed: tuple[DeploymentState, ...], verb: str
    ) -> Deployment:
        record = await self._ledger.do(self._registry.deployments.get, id)
        if record.state is DeploymentState.DELETED:
            raise RecordAbsent(f"deployment {id} is DELETED; only its record is left")
        if record.state not in allowed:
            names = ", ".join(state.value for state in allowed)
            raise RecordConflict(
                f"deployment {id} is {record.state.value}; it can be {verb} when it is {names}"
            )
        return record

    async def _enter(
        self, record: Deployment, state: DeploymentState, reason: str, expect: Deployment | None
    ) -> None:
        await self._ledger.do(
            self._registry.deployments.set_state, record.id, state, reason, expect
        )

    async def _open(
        self, operation: str, action: str, record: Deployment, group_id: str | None
    ) -> WorkRequest:
        return await self._ledger.do(self._ledger.open_work, operation, action, record, group_id)

    # -- updates ----------------------------------------------------------------------------

    async def _describe(
        self, id: str, revision: Revision, expect: Deployment | None
    ) -> WorkRequest:
        changes = revision.described
        record = await self._ledger.do(
            partial(self._registry.deployments.update, id, expect, **changes)
        )
        work = await self._open(_UPDATE, "UPDATED", record, record.group_id)
        done = "names and tags were written" if changes else "nothing differs from what is there"
        return await self._ledger.do(
            self._registry.work_requests.succeed, work.id, f"{done}; the engine was not touched"
        )

    async def _revise(
        self, record: Deployment, revision: Revision, parts: Json, expect: Deployment | None
    ) -> WorkRequest:
        """Record what the next activation serves."""
        group_id = revision.group_id or wanted_group(record)
        await self._described(record, revision, expect)
        work = await self._open(_UPDATE, "UPDATED", record, group_id)
        commit = self._registry.deployments.commit
        generation = record.generation + 1
        call = partial(commit, record.id, group_id, generation, work.id, inactive=True)
        await self._ledger.do(partial(call, configuration={**parts, "group": group_id}))
        return await self._ledger.do(
            self._registry.work_requests.succeed,
            work.id,
            "written; it takes effect with the next activation",
        )

    async def _described(
        self, record: Deployment, revision: Revision, expect: Deployment | None
    ) -> None:
        call = partial(self._registry.deployments.update, record.id, expect, **revision.described)
        await self._ledger.do(call)

    async def _go_live(
        self,
        record: Deployment,
        revision: Revision,
        settings: ServingSettings,
        expect: Deployment | None,
    ) -> WorkRequest:
        active = self._served(record)
        if self.fleet is None:  # in one, a replica first ends what it has left of the last update
            active.serving.live.check_free()
        group_id = revision.group_id or wanted_group(record)
        base = active.serving.live.routing.base
        wanted = await self._ledger.do(wanted_live, self._ledger, base, settings, group_id)
        design = Design.of(wanted.metadata)
        design.check_cards(active.serving.cards)
        # What was served before was judged when it came, and a way back is needed at once.
        known = group_id in (record.group_id, record.previous_group_id)
        gates = None if known else self.gates.of(active.serving, design)
        await self._described(record, revision, expect)
        enter = partial(self._enter, record, DeploymentState.UPDATING, f"to {group_id}", None)
        if self.fleet is None:
            await enter()
        work = await self._open(_UPDATE, "UPDATED", record, group_id)
        change = Change(work, record.id)
        settle = partial(change.settle, "the new group serves already")
        journal = UpdateJournal(self._ledger, work.id, record, group_id, wanted, settle)

        judge = partial(gates, journal) if gates is not None else None
        if known and design.gates:
            journal.note("the group's gates are not run: it was served before")

        async def act() -> str:
            if self.fleet is not None:
                settle = partial(change.settle, "the replicas switch already")
                proposal = Proposal(work.id, group_id, journal, enter, settle, judge)
                done = await self.fleet.update(proposal)
                await journal.tell_members()
                return done
            report = await active.serving.live.update(
                wanted.base, wanted.members, journal, design, judge
            )
            self._slot.rename(active, wanted.name)
            await journal.tell_members()
            return str(report)

        async def undo(reason: str) -> None:
            await journal.tell_members()
            await self._activation.stays(record, group_id, reason)

        self._changes.launch(change, act(), undo)
        return work

    async def _replace(
        self, record: Deployment, revision: Revision, parts: Json, expect: Deployment | None
    ) -> WorkRequest:
        active = self._served(record)
        group_id = revision.group_id or wanted_group(record)
        await self._described(record, revision, expect)
        await self._enter(record, DeploymentState.UPDATING, f"to {group_id}", None)
        work = await self._open(_UPDATE, "UPDATED", record, group_id)
        change = Change(work, record.id)
        act = self._activation.change_engines(change, active, record, group_id, parts)
        self._changes.launch(
            change, act, partial(self._activation.restore, change, record, group_id)
        )
        return work

    def _served(self, record: Deployment) -> Active:
        active = self._slot.active
        if active is None or active.deployment_id != record.id:
            raise NotReady(f"deployment {record.id} is {record.state.value}, and nothing serves it")
        active.serving.check_alive()
        return active


def _check_names(group: GroupRecord, settings: ServingSettings, *, named: bool = False) -> None:
    """Refuse settings that name another base, or with `named`, the base by another key."""
    if group.base_model_id is None:
        return
    keys = [member.key for member in group.members if member.model_id == group.base_model_id]
    key = keys[0] if keys else None
    base_key(group.base_model_id, key, settings)
    if named:
        check_base_key(key, settings)
