"""Replicas, a store and a network in virtual time, where everything may go wrong.

Each replica is the real state machine over the real routing table and leases; its clock has an
offset and a rate of its own. `Violation` is what must never be.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from stacked.core import Digest
from stacked.fleet.replica import (
    UNKNOWN,
    Call,
    Drop,
    Gate,
    Load,
    Outcome,
    Prepare,
    Replica,
    Switch,
    Work,
)
from stacked.fleet.shared import Advance, Beat, Mode, Operation, Shared, View, apply
from stacked.groups.leases import Lease, Leases
from stacked.groups.routing import Routing
from tests.groups.test_routing import member

# How unlike the clocks of two machines may run; `Timings.drift` must cover it for one lease.
RATES = (0.96, 1.0, 1.04)
# How long a replica waits for the answer of the store.
GIVE_UP = (0.5, 1.0, 2.5, 2.5)
KEY = "tone"


class Violation(AssertionError):
    """A promise was broken."""


def check(kept: bool, promise: str) -> None:
    if not kept:
        raise Violation(promise)


_MEMBERS = {str(number): member(KEY, number) for number in range(8)}
"""The one member of each group."""


def point_of(step: Operation | Work) -> str:
    """Where in the protocol a replica is that sends, or does, this."""
    if isinstance(step, Beat) and (step.report.held or step.report.ready):
        return "held" if step.report.held else "ready"
    return type(step).__name__.lower()


class Ambush(NamedTuple):
    """A fault at a point of the protocol: `before` or `after` a message or work has begun, or once
    it has ended.
    """

    when: str
    point: str
    what: str
    seconds: float


@dataclass
class Network:
    """What happens to messages: the chance of each, of 1."""

    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0


class Group:
    """A live group less its engine's time: real routing, real leases, contents by number."""

    def __init__(self) -> None:
        self.routing: Routing[int] | None = None
        self.staged: Routing[int] | None = None
        self.engine: dict[int, Digest] = {}
        self.leases: Leases[int] = Leases()
        self._numbers = itertools.count(1)

    def stage(self, generation: int, group: str) -> None:
        self.drop()
        one, number = _MEMBERS[group], next(self._numbers)
        self.engine[number] = digest = one.content.digest
        self.staged = Routing.of(None, (one,), {digest: number}, generation)

    def switch(self) -> None:
        self.routing, self.staged = self.staged, None
        self.tidy()

    def drop(self) -> None:
        self.staged = None
        self.tidy()

    def tidy(self) -> None:
        """Remove what no request uses."""
        tables = [table for table in (self.routing, self.staged) if table is not None]
        used = {number for table in tables for number in table.handles.values()}
        for number in [n for n in self.engine if n not in used and not self.leases.held(n)]:
            del self.engine[number]


class Process:
    """A replica's process."""

    def __init__(self, name: str, machine: Replica, offset: float, rate: float) -> None:
        self.name, self.machine = name, machine
        self.offset, self.rate = offset, rate
        self.group = Group()
        self.alive, self.paused, self.cut = True, False, False
        self.mute = False
        """Whether nothing that it sends arrives, and answers to what it has sent arrive late."""
        self.refuses = False
        self.advances = False
        """Whether it has taken its update to another stage, which is not withdrawn then."""
        self.asleep: list[Callable[[], None]] = []
        """What happens when it is no longer paused."""
        self.wakes_at = float("inf")
        self.ambush: Ambush | None = None

    def clock(self, now: float) -> float:
        return self.offset + self.rate * now


class World:
    """Up to a few processes. `replica` and `transaction` are what planted bugs replace."""

    def __init__(
        self,
        seed: int,
        mode: Mode,
        *,
        replica: type[Replica] = Replica,
        transaction: Callable[[Shared, Operation], Shared] = apply,
    ) -> None:
        self.random = random.Random(seed)
        self.mode, self._replica, self._transaction = mode, replica, transaction
        self.now = 0.0
        self.shared = Shared()
        self.truth: dict[int, str] = {}
        self.happened: dict[str, int] = {}
        """Proposals that were committed, and their generations."""
        self.told: dict[str, Outcome] = {}
        self.network = Network()
        self.away = False
        self.processes: list[Process] = []
        self.committed = 0
        self.admitted = 0
        """The highest generation that any request was admitted to."""
        self.clients = [0, 0]
        """The generation that each client has got last, and sends back."""
        self.answers = self.commits = 0
        self._give_up = self.random.choice(GIVE_UP)
        self._busy_until = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._groups = itertools.count(1)

    # -- time -------------------------------------------------------------------------------

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), happens))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, happens = heapq.heappop(self._queue)
            self.events += 1
            happens()
        self.now = end

    # -- processes --------------------------------------------------------------------------

    @property
    def running(self) -> list[Process]:
        return [each for each in self.processes if each.alive]

    def start(self) -> None:
        number = next(self._numbers)
        machine = self._replica(
            f"r{number}", str(number), str(next(self._groups) % len(_MEMBERS)), mode=self.mode
        )
        rate, offset = self.random.choice(RATES), self.random.uniform(0, 1000)
        process = Process(machine.name, machine, offset, rate)
        self.processes.append(process)
        self._pump(process)
        self._demand(process)

    def strike(self, process: Process, what: str, seconds: float) -> None:
        """One fault; `seconds` is how long, where it ends by itself."""
        match what:
            case "crash":
                process.alive = False
            case "pause":
                process.paused = True
                self.after(seconds, lambda: self.resume(process))
            case "cut":
                process.cut = True
                self.after(seconds, lambda: setattr(process, "cut", False))
            case "mute":
                process.mute = True
                self.after(seconds, lambda: setattr(process, "mute", False))
            case "store away":
                self.away = True
                self.after(seconds, lambda: setattr(self, "away", False))
            case "refuse":
                process.refuses = True
            case "leave":
                process.machine.leave()
            case "withdraw" if not process.advances:
                process.machine.withdraw("it was canceled")
            case "engine dies":
                process.machine.lost()
                process.group = Group()
        self._pump(process)

    def resume(self, process: Process) -> None:
        process.paused, waking = False, process.asleep
        process.asleep = []
        # A request may be the first that runs, before any timer.
        self.random.shuffle(waking)
        for happens in waking:
            happens()

    def propose(self, process: Process) -> None:
        process.advances = False
        process.machine.propose(f"p{next(self._numbers)}", str(next(self._groups) % len(_MEMBERS)))
        self._pump(process)

    def _in(self, process: Process, happens: Callable[[], None]) -> None:
        """Have it happen in a process: not in one that has ended, later in one that is paused."""
        if process.alive and process.paused:
            process.asleep.append(lambda: self._in(process, happens))
        elif process.alive:
            happens()

    def _pump(self, process: Process) -> None:
        machine = process.machine
        if not process.alive or process.paused:
            return
        if (work := machine.work()) is not None:
            self._begin(process, work)
        if (call := machine.call(process.clock(self.now))) is not None:
            self._send(process, call)
        ahead = max(0.001, (machine.wake_at() - process.clock(self.now)) / process.rate)

        def woken() -> None:
            process.wakes_at = float("inf")
            self._pump(process)

        if self.now + ahead < process.wakes_at:
            process.wakes_at = self.now + ahead
            self.after(ahead, lambda: self._in(process, woken))

    # -- messages ---------------------------------------------------------------------------

    def _send(self, process: Process, call: Call) -> None:
        self._meets(process, "before", call.operation)
        process.advances |= isinstance(call.operation, Advance)
        if not process.alive:
            return
        for _ in range(2 if self._by_chance(self.network.repeated) else 1):
            if not process.cut and not process.mute and not self._by_chance(self.network.lost):
                self.after(self._latency(), lambda: self._carry_out(process, call))
        give_up = self._give_up / process.rate

        def unanswered() -> None:
            process.machine.unanswered(call, process.clock(self.now))
            self._pump(process)

        self.after(give_up, lambda: self._in(process, unanswered))
        self._meets(process, "after", call.operation)

    def _carry_out(self, process: Process, call: Call) -> None:
        if self.away:
            return
        before = self.shared
        self.shared = self._transaction(before, call.operation)
        self._check_store(before, self.shared)
        view = View.of(self.shared, call.id)
        if process.cut or self._by_chance(self.network.lost):
            return

        def answered() -> None:
            process.machine.answered(call, view, process.clock(self.now))
            if (outcome := process.machine.outcome) is not None:
                self.told[outcome.proposal] = outcome
            self._meets(process, "ended", call.operation)
            self._pump(process)

        slow = self.random.uniform(0.3, 2.5) if process.mute else 0.0
        self.after(self._latency() + slow, lambda: self._in(process, answered))

    def _latency(self) -> float:
        late = self._by_chance(self.network.late)
        return (
            self.random.choice((0.2, 0.6, 1.5, 5.0)) * self.random.uniform(0.5, 1.2)
            if late
            else self.random.uniform(0.001, 0.06)
        )

    def _by_chance(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    def _meets(self, process: Process, when: str, step: Operation | Work) -> None:
        """Carry out what lies in wait here."""
        ambush = process.ambush
        if ambush is not None and (ambush.when, ambush.point) == (when, point_of(step)):
            process.ambush = None
            self.strike(process, ambush.what, ambush.seconds)

    # -- work -------------------------------------------------------------------------------

    def _begin(self, process: Process, work: Work) -> None:
        group, machine = process.group, process.machine
        refuses, process.refuses = process.refuses and isinstance(work, Prepare), False
        self._meets(process, "before", work)
        if not process.alive or process.group is not group:
            return

        def ended() -> None:
            if process.group is not group:
                return  # of an engine that has died
            now = process.clock(self.now)
            if refuses:
                machine.failed(work, "its canary failed", now)
            elif machine.under_way is work:
                self._carry(group, work)
                machine.done(work, now)
                self._meets(process, "ended", work)
            self._pump(process)

        slow = isinstance(work, Prepare | Load)
        self.after(
            self.random.uniform(0.01, 1.0 if slow else 0.05), lambda: self._in(process, ended)
        )
        self._meets(process, "after", work)

    def _carry(self, group: Group, work: Work) -> None:
        match work:
            case Load(generation, of):
                group.stage(generation, of)
                group.switch()
            case Prepare(fence, of):
                group.stage(fence, of)
            case Switch():
                group.switch()
            case Drop():
                group.drop()

    # -- requests ---------------------------------------------------------------------------

    def _demand(self, process: Process) -> None:
        """A request now and then, as long as it lives."""
        if process.alive:
            self._in(process, lambda: self._request(process))
            # Many just after something has happened: that is where promises are broken.
            pause = self.random.uniform(0.005, 0.1 if self.now < self._busy_until else 1.0)
            self.after(pause, lambda: self._demand(process))

    def _request(self, process: Process) -> None:
        group, who = process.group, self.random.randrange(len(self.clients))
        if process.machine.gate(process.clock(self.now)) is not Gate.OPEN:
            return
        routing = group.routing
        check(routing is not None, "a gate is open where nothing is served")
        assert routing is not None
        if self.mode is Mode.SESSION and routing.generation < self.clients[who]:
            return  # the client has seen a newer one
        route = routing.resolve(KEY)
        self._check_admission(route.generation, route.digest, who)
        assert route.handle is not None
        lease = group.leases.take(route.handle)
        handle, digest = route.handle, route.digest
        self.after(
            self.random.uniform(0.0, 3.0),
            lambda: self._in(process, lambda: self._answer(group, handle, digest, lease)),
        )

    def _answer(self, group: Group, handle: int, digest: Any, lease: Lease) -> None:
        check(group.engine.get(handle) == digest, "an answer is by another adapter at its end")
        lease.release()
        group.tidy()
        self.answers += 1

    # -- promises ---------------------------------------------------------------------------

    def _check_store(self, before: Shared, after: Shared) -> None:
        if after.fleet is None:
            return
        check(after.fleet.generation >= self.committed, "a committed generation is lost")
        known = self.truth.setdefault(after.fleet.generation, after.fleet.group)
        check(known == after.fleet.group, "a generation is two groups")
        if after.fleet is not before.fleet:
            self._busy_until = self.now + 1.0
        if after.fleet.generation > self.committed and after.fleet.proposal:
            self.commits += 1
            self.happened[after.fleet.proposal] = after.fleet.generation
        self.committed = after.fleet.generation

    def _check_admission(self, generation: int, digest: Any, who: int) -> None:
        check(generation in self.truth, "a request is admitted to what was never committed")
        check(
            digest == _MEMBERS[self.truth[generation]].content.digest,
            "a generation means another group here",
        )
        if self.mode is Mode.GLOBAL:
            check(generation >= self.admitted, "a request is admitted backwards")
        check(generation >= self.clients[who], "a client goes backwards")
        self.admitted = max(self.admitted, generation)
        self.clients[who] = generation

    def settle(self) -> None:
        """No more faults: soon every replica serves the committed group, and an update succeeds."""
        self.network, self.away = Network(), False
        for process in self.running:
            process.cut = process.mute = process.refuses = False
            process.ambush = None
            if process.paused:
                self.resume(process)
        for process in self.running:
            process.alive = not process.machine.leaving
        while not self.running:
            self.start()
        self.run(18.0)
        self._check_all_serve()
        wisher = self.running[0]
        self.propose(wisher)
        self.run(10.0)
        outcome = wisher.machine.outcome
        check(outcome is not None and not outcome.reason, f"an update does not end well: {outcome}")
        self._check_all_serve()
        for proposal, outcome in self.told.items():
            if outcome.reason != UNKNOWN:
                known = outcome.fence if not outcome.reason else None
                check(self.happened.get(proposal) == known, f"an update is told wrongly: {outcome}")

    def _check_all_serve(self) -> None:
        fleet = self.shared.fleet
        check(fleet is not None and fleet.at_rest, "an update never ends")
        assert fleet is not None
        for process in self.running:
            gate = process.machine.gate(process.clock(self.now))
            check(gate is Gate.OPEN, f"a replica never serves again ({gate.value})")
            routing = process.group.routing
            assert routing is not None
            check(routing.generation == fleet.generation, "at rest replicas serve two generations")
            check(process.group.staged is None, "what was staged is left there")
