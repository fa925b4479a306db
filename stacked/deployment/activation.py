"""The one active serving of this machine: started, replaced, stopped, and rolled back.

It owns which engine requests go to, or why there is none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

from stacked.catalogue import Catalogue
from stacked.config import ControlConfig, Design
from stacked.core import Digest
from stacked.deployment.changes import Change
from stacked.deployment.journal import WorkProgress
from stacked.deployment.ledger import Ledger
from stacked.engine.machine import look
from stacked.engine.plan import Room, headroom
from stacked.errors import ConfigInvalid, IllegalMove, NotReady, StackedError
from stacked.registry import Deployment, DeploymentState, MemberState, WorkRequest
from stacked.serving import Commit, Prepared, Serving
from stacked.serving.settings import base_key, settings_of
from stacked.serving.vllm import VllmPrepared, VllmServing
from stacked.steps import Heard, Progress, Start, Step, Stop

logger = logging.getLogger("stacked.deployment.activation")

Json = Mapping[str, Any]

NOTHING = (
    "nothing is deployed here; create a deployment (POST /20190101/modelDeployments), activate "
    "one, or start with a configuration file"
)
# Between a commit and the switch that follows it are milliseconds; a database may be slow.
_ARRIVAL_SECONDS = 5.0
_ACTIVE, _INACTIVE, _FAILED = (
    DeploymentState.ACTIVE,
    DeploymentState.INACTIVE,
    DeploymentState.FAILED,
)


class Active(NamedTuple):
    """The deployment that answers requests, the name of its group, and what answers them."""

    deployment_id: str
    name: str
    serving: Serving


class EngineState(NamedTuple):
    """`state` is one of `metrics.ENGINE_STATES`, `reason` why it does not serve.

    `start_at` is when the next start begins, or has begun, after a death; on the monotonic clock.
    """

    state: str
    reason: str = ""
    start_at: float | None = None


class Slot:
    """The place for what answers requests on this machine, which is one deployment at a time."""

    def __init__(self) -> None:
        self.active: Active | None = None
        self.lost: Active | None = None
        """What was active until its engine died, and is to come back."""
        self.reason = NOTHING
        """Why nothing answers, when nothing does."""
        self.back_at: float | None = None
        """When it may answer again, on the monotonic clock."""
        self.start_at: float | None = None
        """When the next start of what is lost begins, on the monotonic clock."""
        self._arriving: asyncio.Event | None = None
        # What is being started or ended, active or not.
        self._in_change: frozenset[str] = frozenset()

    @property
    def in_use(self) -> frozenset[str]:
        """Digests of bases and adapters that must stay in their stores. From any thread."""
        changing, active = self._in_change, self.occupant  # in this order: see `Live.in_use`
        return changing | active.serving.live.in_use if active is not None else changing

    @property
    def occupant(self) -> Active | None:
        """What is active, or comes back."""
        return self.active or self.lost

    def engine(self, *, changes: bool) -> EngineState:
        """What the engine does now; `changes`: whether a deployment is being changed."""
        if self.active is not None:
            return EngineState("serving")
        if self.lost is not None:
            return EngineState("restarting", self.reason, self.start_at)
        return EngineState("starting" if changes else "none", self.reason)

    def serve(self, active: Active) -> None:
        """Let requests go to this."""
        self.active, self.lost, self.back_at = active, None, None

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """What is active when this block ends is so in the records before, where clients see it."""
        event = self._arriving = asyncio.Event()
        try:
            yield
        finally:
            self._arriving = None
            event.set()

    async def arrived(self) -> None:
        """Wait for what is arriving, if nothing is active; not for long."""
        if self._arriving is not None and self.active is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arriving.wait(), _ARRIVAL_SECONDS)

    def rename(self, active: Active, name: str) -> None:
        """What serves has another group now; its engine may have died since."""
        if self.lost is not None and self.lost.serving is active.serving:
            self.lost = active._replace(name=name)
        else:
            self.active = active._replace(name=name)

    def lose(self, reason: str) -> Active:
        """The engine of what is active has died; it is returned."""
        assert self.active is not None, "an engine that died was active"
        lost = self.lost = self.active
        self.active, self.reason = None, reason
        return lost

    def empty(self, reason: str) -> None:
        """Nothing answers, and nothing comes back by itself."""
        self.active, self.lost, self.back_at, self.reason = None, None, None, reason

    @contextmanager
    def needs(self, digests: Iterable[str]) -> Iterator[None]:
        """These count as in use within the block, whatever is active."""
        before = self._in_change
        self._in_change = before.union(digests)
        try:
            yield
        finally:
            self._in_change = before

    def get(self) -> Active:
        """What answers requests. Raises NotReady and EngineDead when nothing does."""
        if self.active is None:
            error = NotReady(self.reason)
            if self.back_at is not None:
                error.retry_after = self.back_at - time.monotonic()
            raise error
        self.active.serving.check_alive()
        return self.active

    async def close(self) -> None:
        """End what is active."""
        if self.occupant is not None:
            await self.occupant.serving.close()


class Starts(Protocol):
    """What a deployment needs to be started; see `Starter`."""

    async def prepare(self, group_id: str, configuration: Json) -> Prepared: ...
    async def start(self, prepared: Prepared, commit: Commit, tell: Progress) -> Serving: ...
    async def again(
        self, lost: Serving, quarantined: Mapping[Digest, str], tell: Progress
    ) -> Serving: ...
    def room(self, running: Serving, coming: Prepared) -> Room: ...


class Starter:
    """Starts what serves the groups of one ledger, by their kind."""

    def __init__(self, ledger: Ledger, catalogue: Catalogue, config: ControlConfig) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._config = config

    async def prepare(self, group_id: str, configuration: Json) -> Prepared:
        """Read the group and its base from disk, and plan. Starts nothing.

        Raises RecordAbsent, AdapterAbsent, BaseNotFound, ConfigInvalid, GroupImpossible.
        """
        return await asyncio.to_thread(self._prepare, group_id, configuration)

    def _prepare(self, group_id: str, configuration: Json) -> Prepared:
        record = self._ledger.registry.groups.get(group_id)
        settings = settings_of(configuration, record.kind)
        if record.kind != "STACKED":
            return Prepared(self._ledger.wanted(group_id, None), settings)
        base_id = record.base_model_id
        if base_id is None:
            raise ConfigInvalid(f"group {group_id} has no base")
        entry = next(member for member in record.members if member.model_id == base_id)
        base = self._catalogue.bases.base(base_id, base_key(base_id, entry.key, settings))
        modules = self._catalogue.bases.modules(self._ledger.registry.models.get(base_id))
        wanted = self._ledger.wanted(group_id, base)
        return VllmPrepared.of(wanted, modules, settings, self._catalogue.store.root)

    async def start(self, prepared: Prepared, commit: Commit, tell: Progress) -> Serving:
        """See `VllmServing.start` and `ModelsServing.start`."""
        if isinstance(prepared, VllmPrepared):
            return await VllmServing.start(prepared, commit, self._config.server, tell)
        # Here, so that a server of adapters imports nothing of it.
        from stacked.serving.models import ModelsServing

        directory = self._catalogue.models.root
        return await ModelsServing.start(prepared, commit, self._config, directory, tell)

    async def again(
        self, lost: Serving, quarantined: Mapping[Digest, str], tell: Progress
    ) -> Serving:
        """Start another engine for what a lost one served; see `VllmServing.again`."""
        assert isinstance(lost, VllmServing), "other engines heal themselves"
        return await self.start(*lost.again(quarantined), tell)

    def room(self, running: Serving, coming: Prepared) -> Room:
        """Whether the new one may start while the other runs."""
        if not isinstance(coming, VllmPrepared):  # its models are loaded only where they fit
            return Room(True, "the new models are loaded next to what is served")
        held = running.plan.memory_bytes if isinstance(running, VllmServing) else 0
        return headroom(held, coming.plan, look())


class Activation:
    """Changes what is in the slot, and the records of that."""

    def __init__(self, ledger: Ledger, starts: Starts, slot: Slot, tell: Progress) -> None:
        self._ledger = ledger
        self._registry = ledger.registry
        self._starts = starts
        self._slot = slot
        self._tell = tell

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
        prepared = await self._prepare(group_id, {**record.configuration, **parts}, tell)
        commit = partial(self._commit, change, group_id, parts)
        if again:
            quarantined = await asyncio.to_thread(self._ledger.quarantined, record)
            prepared = prepared.without(quarantined)
            commit = partial(self._stands, record, quarantined)
        return await self._start(record.id, prepared, commit, tell)

    async def _prepare(self, group_id: str, configuration: Json, tell: Progress) -> Prepared:
        tell.step(Start.READ)
        prepared = await self._starts.prepare(group_id, configuration)
        for note in prepared.settings.notes:
            tell.note(note)
        if Design.of(prepared.group.metadata).gates:
            tell.note("the group's gates are not run: they judge what a LIVE update brings")
        return prepared

    async def _start(self, id: str, prepared: Prepared, commit: Commit, tell: Progress) -> str:
        group = prepared.group
        with ExitStack() as block:
            block.enter_context(self._slot.needs(group.stored))

            async def committed() -> int:
                block.enter_context(self._slot.arriving())
                return await commit()

            serving = await self._starts.start(prepared, committed, tell)
            self._slot.serve(Active(id, group.name, serving))
        return f"group {group.name!r} is served, generation {serving.live.routing.generation}"

    async def _commit(self, change: Change, group_id: str, parts: Json) -> int:
        """Make the group what a restart serves. Once begun it is not cancelled."""
        change.settle("the new engine serves already")
        return await asyncio.shield(self._ledger.do(self._commit_now, change, group_id, parts))

    def _commit_now(self, change: Change, group_id: str, parts: Json) -> int:
        id = change.deployment_id
        generation = self._registry.deployments.get(id).generation + 1
        served = self._slot.occupant
        if served is not None and served.deployment_id == id:
            # Models that were loaded one by one counted generations too.
            generation = max(generation, served.serving.live.routing.generation + 1)
        self._ledger.set_aside(id, f"deployment {id} is served instead")
        self._registry.deployments.put_members(id, group_id, self._ledger.member_states(group_id))
        self._registry.deployments.commit(
            id, group_id, generation, change.work_id, configuration=parts
        )
        return generation

    async def _stands(self, record: Deployment, quarantined: Mapping[str, str]) -> int:
        """What was committed before serves again."""
        await self._ledger.with_retry(self._ledger.served, record.id, quarantined)
        return record.generation

    async def put_down(self, work: WorkRequest, record: Deployment, after: DeploymentState) -> str:
        active, was_active = self._slot.occupant, self._slot.active is not None
        if active is not None and active.deployment_id == record.id:
            self._slot.empty(NOTHING)
            tell = WorkProgress(self._ledger, work.id, self._tell)
            if was_active:
                await self._retire(active, tell, Stop.RETIRE)
        await self._write_state(record.id, after)
        return f"deployment {record.id} is {after.value}"

    async def _retire(self, active: Active, tell: Progress, step: Step) -> None:
        """Let requests finish and stop the engine. Errors are only logged, as nothing is served."""
        tell.step(step, 0.0, "requests may finish")
        try:
            with self._slot.needs(active.serving.live.in_use):
                ended = await active.serving.live.drain()
            if ended:
                tell.note(f"{ended} requests outlasted the drain time and were ended")
            tell.step(step, 0.9, "stopping it")
            await active.serving.close()
        except asyncio.CancelledError:  # the server stops, and nothing else knows this engine
            await active.serving.close()
            raise
        except Exception:  # an engine that will not end must not undo what has been switched
            logger.exception("the old engine did not end well")

    async def _write_state(self, id: str, state: DeploymentState, reason: str = "") -> None:
        await self._ledger.with_retry(self._registry.deployments.set_state, id, state, reason)

    def _progress(self, change: Change) -> WorkProgress:
        """Written down, and the reason that requests get while nothing serves them."""

        def hear(text: str) -> None:
            self._slot.reason = f"deployment {change.deployment_id} is starting: {text}"

        return WorkProgress(self._ledger, change.work_id, Heard(self._tell, hear))

    async def again(self, lost: Active, quarantined: Mapping[Digest, str]) -> None:
        """Start another engine for what a lost one served. Needs no records, and writes none."""

        def hear(text: str) -> None:
            self._slot.reason = f"its engine has died and starts again: {text}"

        with self._slot.needs(lost.serving.live.in_use):
            serving = await self._starts.again(lost.serving, quarantined, Heard(self._tell, hear))
            self._slot.serve(lost._replace(serving=serving))

    # -- another engine ---------------------------------------------------------------------

    async def change_engines(
        self, change: Change, old: Active, record: Deployment, group_id: str, parts: Json
    ) -> str:
        """Another engine next to the one that serves where memory allows it, else after it."""
        tell = self._progress(change)
        coming = await self._prepare(group_id, {**record.configuration, **parts}, tell)
        room = self._starts.room(old.serving, coming)
        tell.note(room.text)
        if not room.enough:
            self._slot.empty(f"deployment {record.id} is being replaced")
            await self._retire(old, tell, Start.MAKE_ROOM)
        commit = partial(self._commit, change, group_id, parts)
        done = await self._start(record.id, coming, commit, tell)
        if room.enough:
            await self._retire(old, tell, Start.RETIRE)
        return done

    # -- undoing ----------------------------------------------------------------------------

    async def not_created(self, id: str, group_id: str, reason: str) -> None:
        self._slot.reason = NOTHING
        states = partial(self._ledger.member_states, group_id, MemberState.FAILED, reason)
        members = await self._ledger.with_retry(states)
        await self._ledger.with_retry(self._registry.deployments.put_members, id, group_id, members)
        await self._write_state(id, _FAILED, reason)

    async def back_to(self, id: str, state: DeploymentState, reason: str) -> None:
        self._slot.reason = NOTHING if state is _INACTIVE else f"deployment {id} failed: {reason}"
        await self._write_state(id, state, reason)

    async def stays(self, record: Deployment, group_id: str, reason: str) -> None:
        reason = f"the update to {group_id} failed: {reason}"
        try:
            await self._write_state(record.id, _ACTIVE, reason)
        except IllegalMove as error:  # of a fleet, where it was not begun or another has ended it
            logger.info("%s", error)

    async def restore(self, change: Change, record: Deployment, group_id: str, reason: str) -> None:
        """The old engine continues, or is started again if it had to make room."""
        if self._slot.active is not None:
            await self.stays(record, group_id, reason)
            return
        tell = self._progress(change)
        tell.note(f"starting again what was served before, since the update failed: {reason}")
        try:
            prepared = await self._prepare(wanted_group(record), record.configuration, tell)
            await self._start(record.id, prepared, partial(self._generation, record), tell)
        except StackedError as error:
            reason = f"{reason}; and what was served before did not start again: {error}"
            await self.back_to(record.id, _FAILED, reason)
            return
        await self.stays(record, group_id, reason)

    async def _generation(self, record: Deployment) -> int:
        return record.generation


def wanted_group(record: Deployment) -> str:
    """The group that a deployment serves, or was to serve."""
    return record.group_id or str(record.configuration["group"])
