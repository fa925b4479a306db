"""This server in a fleet: it carries out what the protocol says, over what serves here.

`Replica` decides; here are its clock, its store, its engine and its records.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from stacked import metrics
from stacked.config import FleetConfig
from stacked.deployment.activation import Slot
from stacked.deployment.bringing import Bringing, Judge
from stacked.deployment.fleet_gate import FleetGate, clock, within
from stacked.deployment.instances import Wanted
from stacked.deployment.joining import end_what_others_left
from stacked.deployment.journal import UpdateJournal
from stacked.deployment.ledger import Ledger
from stacked.deployment.members import Differing, differing
from stacked.deployment.settling import settle
from stacked.errors import RecordConflict, StackedError, UpdateFailed, UpdateInProgress
from stacked.fleet.replica import Call, Drop, Gate, Load, Outcome, Prepare, Replica, Switch, Work
from stacked.fleet.shared import Advance, Fleet, Operation, Stage, View
from stacked.registry.fleets import Seen
from stacked.serving import Serving

logger = logging.getLogger("stacked.deployment.fleet")

# An operation takes milliseconds; what is longer under way is taken for lost, and may be repeated.
_STORE_SECONDS = 1.0
# One that hangs occupies a thread until the driver of the database gives it up.
_THREADS = 8

CANCELED = "it was canceled"


class Store(Protocol):
    """What the replicas share; see `stacked.registry.fleets`."""

    def carry_out(self, id: str, operation: Operation) -> View: ...

    def put_lacking(self, id: str, generation: int, models: Mapping[str, str]) -> None: ...

    def seen(self) -> Seen: ...

    def happened(self, proposal: str) -> bool: ...


@dataclass(eq=False)
class Proposal:
    """An update of the fleet that begins here, as work on its deployment."""

    work_id: str
    group_id: str
    journal: UpdateJournal
    begin: Callable[[], Awaitable[object]]
    """Called when the fleet has accepted it."""
    settle: Callable[[], None]
    """Called when it can no longer be canceled."""
    judge: Judge | None = None
    error: StackedError | None = None
    """Why this replica refuses it."""
    bringing: Bringing | None = None
    ended: asyncio.Future[Outcome] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class FleetMember:
    """One process of a fleet. `begin` once there is a loop; `await close()` ends it."""

    def __init__(self, slot: Slot, ledger: Ledger, store: Store, config: FleetConfig) -> None:
        self.name = config.replica_name
        self.gate = FleetGate(config)
        self._slot, self._ledger, self._store, self._config = slot, ledger, store, config
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fleet")
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken, self._heard = asyncio.Event(), asyncio.Event()
        self._wanted = Wanted(ledger, slot)
        self._serving: Serving | None = None
        """Where the generation of this replica is loaded."""
        self._bringing: Bringing | None = None
        self._switch: Switch | None = None
        self._proposal: Proposal | None = None
        self._stage, self._since, self._reported = Stage.COMMITTED, 0.0, ""
        self._settled = 0
        self._resigned = False
        self._complaint = ""

    def begin(self) -> None:
        self._task(self._run())
        self._task(self._tell_lacking())
        self._task(end_what_others_left(self._ledger))

    async def close(self) -> None:
        """Do nothing more. Closing twice is allowed."""
        self.resign()
        if self._bringing is not None:
            self._bringing.drop()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def resign(self) -> None:
        """Admit nothing more, and leave what becomes of an update to the others."""
        self._resigned = True
        if self.gate.replica is not None:
            self.gate.replica.leave()
            self._wake()

    def look(self) -> None:
        """Have the metrics show what it does, and how many replicas there are to be."""
        self.gate.look()
        if not self._resigned and self._wanted.is_old():
            self._task(self._wanted.read())

    async def leave(self) -> None:
        """Resign, and return when no replica waits for this one."""
        self.resign()
        replica = self.gate.replica
        while replica is not None and replica.member and (left := self.gate.lease_left) > 0:
            await self.gate.change(left)

    # -- updates ----------------------------------------------------------------------------

    async def free(self) -> None:
        """Raises NotReady where this is no member, UpdateInProgress while the fleet is updated."""
        if self.gate.replica is not None:
            self.gate.replica.hurry()
            self._wake()
            await within(self._heard, _STORE_SECONDS)
        self._check_free()

    def _check_free(self) -> None:
        replica, fleet = self.gate.replica, self.gate.view.fleet
        if replica is None or fleet is None or replica.gate(clock()) is Gate.CLOSED:
            raise self.gate.closed()
        if not fleet.at_rest:
            raise UpdateInProgress("another update of the fleet is under way; try again when done")

    def check_mine(self, work_id: str) -> None:
        """Raises RecordConflict for an update that another replica runs."""
        fleet, mine = self.gate.view.fleet, self._proposal
        theirs = fleet is not None and not fleet.at_rest and fleet.proposal == work_id
        if fleet is not None and theirs and (mine is None or mine.work_id != work_id):
            name = fleet.coordinator.split("/")[0]
            raise RecordConflict(f"work request {work_id} runs on replica {name}; cancel it there")

    async def update(self, proposal: Proposal) -> str:
        """Have every replica serve its group, or none; what was done.

        Raises NotReady, UpdateInProgress, and UpdateFailed or what this replica refuses it with.
        """
        self._check_free()
        replica = self.gate.replica
        assert replica is not None, "a member has one"
        self._proposal = proposal
        try:
            replica.propose(proposal.work_id, proposal.group_id)
            self._wake()
            outcome = await self._outcome(replica, proposal)
        finally:
            self._proposal = None
        if not outcome.fence:
            raise UpdateInProgress(outcome.reason)
        failed = bool(outcome.reason)
        if failed:  # or others followed it before this replica heard of its end
            failed = not await self._ledger.with_retry(self._store.happened, proposal.work_id)
        if failed:
            kind = UpdateFailed if proposal.error is None else type(proposal.error)
            raise kind(outcome.reason) from proposal.error
        await self._follow()
        if proposal.bringing is not None:
            await proposal.bringing.over()
        report = proposal.bringing and proposal.bringing.report
        return str(report or f"generation {outcome.fence}")

    async def _outcome(self, replica: Replica, proposal: Proposal) -> Outcome:
        try:
            return await asyncio.shield(proposal.ended)
        except asyncio.CancelledError:
            if replica.leaving:
                raise
            replica.withdraw(CANCELED)
            self._wake()
            outcome = await asyncio.shield(proposal.ended)
            if outcome.reason:
                raise
            return outcome

    # -- the protocol -----------------------------------------------------------------------

    async def _run(self) -> None:
        replica = await self._found()
        if self._resigned:
            return
        self.gate.replica = replica
        while True:
            try:
                self._pump(replica)
            except Exception:  # a fault of ours must not end the lease for ever
                logger.exception("the fleet's protocol failed")
            self._woken.clear()
            await within(self._woken, replica.wake_at() - clock())

    async def _found(self) -> Replica:
        """The replica, when something is served that may found the fleet."""
        config = self._config
        while (active := self._slot.active) is None:  # noqa: ASYNC110  the slot has no event
            await asyncio.sleep(config.timings.beat)
        get = self._ledger.registry.deployments.get
        record = await self._ledger.with_retry(get, active.deployment_id)
        return Replica(
            self.name,
            uuid.uuid4().hex[:12],
            str(record.group_id),
            generation=record.generation,
            mode=config.mode,
            timings=config.timings,
        )

    def _wake(self) -> None:
        self._woken.set()

    def _pump(self, replica: Replica) -> None:
        served, active = self._serving, self._slot.active
        if served is not None and (active is None or active.serving is not served or served.dead):
            self._lost(replica)
        if (work := replica.work()) is not None:
            self._work(replica, work)
        if (call := replica.call(clock())) is not None:
            if isinstance(call.operation, Advance) and self._proposal is not None:
                self._proposal.settle()
            self._task(self._send(replica, call))
        outcome, proposal = replica.outcome, self._proposal
        if proposal and outcome and outcome.proposal == proposal.work_id:
            self._proposal = None
            proposal.ended.set_result(outcome)
        self.gate.show()

    def _lost(self, replica: Replica) -> None:
        self._serving = None
        if self._bringing is not None:
            self._bringing.drop()
        replica.lost()

    async def _send(self, replica: Replica, call: Call) -> None:
        logger.debug("%s: %s", self.name, call.operation)
        carry_out = partial(self._store.carry_out, call.id, call.operation)
        try:
            async with asyncio.timeout(_STORE_SECONDS):
                view = await asyncio.get_running_loop().run_in_executor(self._threads, carry_out)
        except (StackedError, TimeoutError) as error:
            metrics.fleet_store_failed()
            self._complain(f"the fleet's database does not answer: {error or 'not in time'}")
        else:
            replica.answered(call, view, clock())
            self._seen(replica, view)
            self._heard.set()
            self._heard = asyncio.Event()
        finally:
            replica.unanswered(call, clock())  # unless it was
            self._wake()

    def _complain(self, what: str) -> None:
        """Once for each cause."""
        if what != self._complaint:
            self._complaint = what
            logger.warning("%s", what)

    def _seen(self, replica: Replica, view: View) -> None:
        fleet, proposal = view.fleet, self._proposal
        if fleet is None:
            return
        if fleet.stage is not self._stage:
            self._stage, self._since = fleet.stage, clock()
        if proposal is not None and fleet.proposal == proposal.work_id:
            if view.members:
                self._report(proposal, fleet, view)
        elif fleet.proposal and replica.orphaned and fleet.fence > self._settled:
            self._settled = fleet.fence
            self._task(self._follow(gone=True))

    def _report(self, proposal: Proposal, fleet: Fleet, view: View) -> None:
        """In the work request: how many replicas are how far."""
        ready = sum(each.ready == fleet.fence for each in view.members)
        held = sum(each.held == fleet.fence for each in view.members)
        count, done = (held, "hold their requests") if held else (ready, "have the group ready")
        text = f"{count} of {len(view.members)} replicas {done}"
        if count and text != self._reported:
            self._reported = text
            proposal.journal.note(f"{text}, after {clock() - self._since:.2f} s")

    # -- its work ---------------------------------------------------------------------------

    def _work(self, replica: Replica, work: Work) -> None:
        logger.debug("%s: %s", self.name, work)
        match work:
            case Prepare(fence, group):
                self._bring(replica, work, group, fence)
            case Load(generation, group):
                self._bring(replica, work, group, generation)
            case Switch() if self._bringing is not None:
                self._switch = work
                self._bringing.go()
            case Drop():
                self._task(self._drop(replica, work, self._bringing))

    async def _drop(self, replica: Replica, work: Drop, bringing: Bringing | None) -> None:
        if bringing is not None and not bringing.switched:
            bringing.drop()
            await bringing.over()
        self._did(replica, work)

    def _did(self, replica: Replica, work: Work) -> None:
        replica.done(work, clock())
        self.gate.show()
        self._wake()

    def _bring(self, replica: Replica, work: Prepare | Load, group: str, generation: int) -> None:
        fleet, before, loads = self.gate.view.fleet, self._bringing, isinstance(work, Load)
        mine = self._proposal
        if loads or mine is None or fleet is None or fleet.proposal != mine.work_id:
            mine = None

        def ready() -> None:
            if not loads:
                self._did(replica, work)

        def switched() -> None:
            if bringing is self._bringing:
                self._serving, self.gate.trouble = bringing.serving, ""
            # Of a group that waited, it is the end of the Switch that followed.
            self._did(replica, work if loads or self._switch is None else self._switch)
            self._task(self._follow())

        journal = mine.journal if mine is not None else None
        self._bringing = bringing = Bringing(group, generation, ready, switched, journal)
        if loads:
            bringing.go()
        if mine is not None:
            mine.bringing = bringing
        bringing.task = self._task(self._carry(replica, work, bringing, before, mine))

    async def _carry(
        self,
        replica: Replica,
        work: Prepare | Load,
        bringing: Bringing,
        before: Bringing | None,
        mine: Proposal | None,
    ) -> None:
        try:
            if before is not None:
                await before.over()  # requests of the group before the served one
            if mine is not None:
                # Unless others have ended this work, for which it had seemed to be gone.
                requests = self._ledger.registry.work_requests
                await self._ledger.do(requests.advance, mine.work_id, 0.0)
                await mine.begin()
            await bringing.run(self._slot, self._ledger, mine.judge if mine is not None else None)
        except Exception as error:  # whatever it is, the fleet learns that it is not served here
            if bringing.switched:
                logger.exception("the group before was not removed")
            if bringing.switched or bringing.dropped:
                return
            if mine is not None and isinstance(error, StackedError):
                mine.error = error
            why = str(error) or type(error).__name__
            self.gate.trouble = f"group {bringing.group_id} is not served here: {why}"
            self._complain(self.gate.trouble)
            replica.failed(work, why, clock())
            self._wake()

    # -- models that are not served here -----------------------------------------------------

    def differing(self) -> Differing:
        """The models of the committed group that not every replica serves. Blocks."""
        return differing(self._store.seen(), self._config.lease_seconds)

    async def _tell_lacking(self) -> None:
        """Have all know which models of its group this replica does not serve."""
        member, shown, any_shown = "", None, False
        while True:
            await asyncio.sleep(self._config.timings.beat)
            replica, active = self.gate.replica, self._slot.active
            if replica is None or active is None or not replica.member:
                continue
            id, live = replica.id, active.serving.live
            routing = live.routing
            if member == id and shown is routing:
                continue
            any_shown = any_shown and member == id
            models = live.lacking
            if models or any_shown:
                put = partial(self._store.put_lacking, id, routing.generation, models)
                try:
                    await asyncio.get_running_loop().run_in_executor(self._threads, put)
                except StackedError as error:
                    self._complain(f"the fleet's database does not answer: {error}")
                    continue
            member, shown, any_shown = id, routing, bool(models)

    # -- the records ------------------------------------------------------------------------

    async def _follow(self, *, gone: bool = False) -> None:
        """Have the records say what the fleet has committed.

        `gone`: and what became of the update, as the process that ran it no longer does.
        """
        active, fleet = self._slot.occupant, self.gate.view.fleet
        if active is None or fleet is None:
            return
        try:
            await self._ledger.with_retry(
                settle, self._ledger.registry, active.deployment_id, fleet, gone
            )
        except StackedError:
            logger.exception("the records do not show what the fleet serves")

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
