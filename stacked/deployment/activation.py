"""The one active serving of this machine: brought up, replaced, put down, and what is undone.

It owns which engine requests go to, or why there is none. It must not know what may be asked when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from stacked.core import ModelGroup
from stacked.deployment.changes import Change
from stacked.deployment.journal import WorkProgress
from stacked.deployment.ledger import Ledger
from stacked.deployment.serving import Serving
from stacked.deployment.settings import ServingSettings
from stacked.deployment.starter import Prepared, Starts
from stacked.errors import StackedError
from stacked.registry import Deployment, DeploymentState, MemberState, WorkRequest
from stacked.steps import Heard, Progress, Start, Step, Stop
from stacked.store import BaseModules

logger = logging.getLogger("stacked.deployment.activation")

Json = Mapping[str, Any]

NOTHING = (
    "nothing is deployed here; create a deployment (POST /20190101/modelDeployments), activate "
    "one, or start with a configuration file"
)
_ACTIVE, _INACTIVE, _FAILED = (
    DeploymentState.ACTIVE,
    DeploymentState.INACTIVE,
    DeploymentState.FAILED,
)


@dataclass(frozen=True, slots=True)
class Active:
    """The deployment that answers requests, and what answers them."""

    deployment_id: str
    name: str
    """Its group's."""
    serving: Serving
    settings: ServingSettings
    modules: BaseModules
    """What an adapter that is loaded alone is checked against."""

    @classmethod
    def of(cls, deployment_id: str, serving: Serving, prepared: Prepared) -> Active:
        """What was prepared, now running."""
        name, settings = prepared.group.name, prepared.settings
        return cls(deployment_id, name, serving, settings, prepared.modules)


class Activation:
    """What answers requests, and the one place where that is changed."""

    def __init__(
        self, ledger: Ledger, starts: Starts, *, drain_seconds: float, tell: Progress
    ) -> None:
        self.active: Active | None = None
        self.reason = NOTHING
        """Why nothing answers, when nothing does."""
        self._ledger = ledger
        self._registry = ledger.registry
        self._starts = starts
        self._drain_seconds = drain_seconds
        self._tell = tell
        # What is being started or ended beside what is active.
        self._in_change: frozenset[str] = frozenset()

    @property
    def in_use(self) -> frozenset[str]:
        """Digests of bases and adapters that must stay in their stores. From any thread."""
        changing, active = self._in_change, self.active  # in this order: see `Live.in_use`
        return changing | active.serving.in_use if active is not None else changing

    @contextmanager
    def _needs(self, digests: Iterable[str]) -> Iterator[None]:
        before = self._in_change
        self._in_change = before.union(digests)
        try:
            yield
        finally:
            self._in_change = before

    # -- starting and stopping --------------------------------------------------------------

    async def bring_up(
        self,
        change: Change,
        record: Deployment,
        group_id: str,
        parts: Json,
        *,
        again: bool = False,
    ) -> str:
        """Start an engine for the group, commit, and let requests go to it."""
        tell = self._progress(change)
        tell.step(Start.READ)
        prepared = await self._starts.prepare(group_id, {**record.configuration, **parts})
        for note in prepared.settings.notes:
            tell.note(note)
        commit = partial(self._commit, change, group_id, parts)
        if again:
            commit = partial(self._stands, record)
        with self._needs(_digests(prepared.group)):
            serving = await self._starts.start(prepared, commit, tell)
            self.active = Active.of(record.id, serving, prepared)
        return f"group {group_id} is served, generation {serving.live.routing.generation}"

    async def _commit(self, change: Change, group_id: str, parts: Json) -> int:
        """Make the group what a restart serves. Once begun it is not given up."""
        change.settle("the new engine serves already")
        return await asyncio.shield(self._ledger.do(self._commit_now, change, group_id, parts))

    def _commit_now(self, change: Change, group_id: str, parts: Json) -> int:
        id = change.deployment_id
        generation = self._registry.deployments.get(id).generation + 1
        self._ledger.set_aside(id, f"deployment {id} is served instead")
        self._registry.deployments.put_members(id, group_id, self._ledger.member_states(group_id))
        self._registry.deployments.commit(
            id, group_id, generation, change.work_id, configuration=parts
        )
        return generation

    async def _stands(self, record: Deployment) -> int:
        """What was committed before serves again."""
        await self._write_state(record.id, _ACTIVE)
        return record.generation

    async def put_down(self, work: WorkRequest, record: Deployment, after: DeploymentState) -> str:
        active = self.active
        if active is not None and active.deployment_id == record.id:
            self.active, self.reason = None, NOTHING
            tell = WorkProgress(self._ledger, work.id, self._tell)
            await self._retire(active, tell, Stop.RETIRE)
        await self._write_state(record.id, after)
        return f"deployment {record.id} is {after.value}"

    async def _retire(self, active: Active, tell: Progress, step: Step) -> None:
        """Let requests finish and end the engine. What goes wrong is logged: nobody is served."""
        tell.step(step, 0.0, "requests may finish")
        try:
            with self._needs(active.serving.in_use):
                ended = await active.serving.drain(self._drain_seconds)
            if ended:
                tell.note(f"{ended} requests outlasted the drain time and were ended")
            tell.step(step, 0.9, "stopping it")
            await active.serving.close()
        except asyncio.CancelledError:  # the server stops: nobody else knows this engine any more
            await active.serving.close()
            raise
        except Exception:  # an engine that will not end must not undo what has been switched
            logger.exception("the old engine did not end well")

    async def _write_state(self, id: str, state: DeploymentState, reason: str = "") -> None:
        await self._ledger.with_retry(self._registry.deployments.set_state, id, state, reason)

    def _progress(self, change: Change) -> WorkProgress:
        """Written down, and what a request is told while there is nothing to answer it."""

        def hear(text: str) -> None:
            self.reason = f"deployment {change.deployment_id} is starting: {text}"

        return WorkProgress(self._ledger, change.work_id, Heard(self._tell, hear))

    # -- another engine ---------------------------------------------------------------------

    async def change_engines(
        self, change: Change, old: Active, record: Deployment, group_id: str, parts: Json
    ) -> str:
        """Another engine beside the one that serves where memory allows it, else after it."""
        tell = self._progress(change)
        coming = await self._starts.prepare(group_id, {**record.configuration, **parts})
        room = self._starts.room(old.serving, coming)
        tell.note(room.text)
        if not room.beside:
            self.active, self.reason = None, f"deployment {record.id} is being replaced"
            await self._retire(old, tell, Start.MAKE_ROOM)
        told = await self.bring_up(change, record, group_id, parts)
        if room.beside:
            await self._retire(old, tell, Start.RETIRE)
        return told

    # -- undoing ----------------------------------------------------------------------------

    async def not_created(self, id: str, group_id: str, reason: str) -> None:
        self.reason = NOTHING
        states = partial(self._ledger.member_states, group_id, MemberState.FAILED, reason)
        members = await self._ledger.with_retry(states)
        await self._ledger.with_retry(self._registry.deployments.put_members, id, group_id, members)
        await self._write_state(id, _FAILED, reason)

    async def back_to(self, id: str, state: DeploymentState, reason: str) -> None:
        self.reason = NOTHING if state is _INACTIVE else f"deployment {id} failed: {reason}"
        await self._write_state(id, state, reason)

    async def stays(self, record: Deployment, group_id: str, reason: str) -> None:
        told = f"the update to {group_id} failed: {reason}"
        await self._write_state(record.id, _ACTIVE, told)

    async def restore(self, change: Change, record: Deployment, group_id: str, reason: str) -> None:
        """The old engine serves on, or is started again where it had to make room."""
        if self.active is not None:
            await self.stays(record, group_id, reason)
            return
        tell = self._progress(change)
        tell.note(f"starting again what was served before, since the update failed: {reason}")
        try:
            prepared = await self._starts.prepare(wanted_group(record), record.configuration)
            with self._needs(_digests(prepared.group)):
                serving = await self._starts.start(
                    prepared, partial(self._generation, record), tell
                )
                self.active = Active.of(record.id, serving, prepared)
        except StackedError as error:
            told = f"{reason}; and what was served before did not start again: {error}"
            await self.back_to(record.id, _FAILED, told)
            return
        await self.stays(record, group_id, reason)

    async def _generation(self, record: Deployment) -> int:
        return record.generation


def wanted_group(record: Deployment) -> str:
    """The group that a deployment serves, or was to serve."""
    return record.group_id or str(record.configuration["group"])


def _digests(group: ModelGroup) -> frozenset[str]:
    return frozenset(group.adapters()) | {group.base.digest}
