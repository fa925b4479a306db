"""The protocol against everything that may go wrong, and against bugs that are planted in it.

The long form, `pytest -m long tests/fleet/test_protocol.py`, takes 100,000 steps.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stacked.fleet.replica import Replica
from stacked.fleet.shared import (
    Abort,
    Advance,
    Beat,
    Fleet,
    Join,
    Mode,
    Operation,
    Shared,
    Stage,
    View,
    apply,
)
from tests.fleet.world import Ambush, Network, Process, Violation, World

MOST = 4
POINTS = ("join", "beat", "ready", "held", "propose", "advance", "abort", "evict")
FAULTS = ("cut", "mute", "pause", "crash", "engine dies", "refuse", "leave", "store away")


class Fleets(RuleBasedStateMachine):
    """Up to four replicas; a step is a fault, an update, or some time.

    Hypothesis chooses the steps, and a seed from which their details are drawn.
    """

    replica: ClassVar[type[Replica]] = Replica
    transaction: Any = staticmethod(apply)
    steps: ClassVar[int] = 0

    @initialize(seed=st.integers(0, 2**64 - 1))
    def begin(self, seed: int) -> None:
        self.random = Random(seed)
        mode = self.random.choice((Mode.GLOBAL, Mode.GLOBAL, Mode.SESSION))
        self.world = World(seed, mode, replica=self.replica, transaction=self.transaction)
        for _ in range(self.random.randint(2, MOST)):
            self.world.start()
        self.world.run(4.0)
        self.world.network = Network(late=self.random.choice((0.0, 0.1, 0.3)))

    def one(self) -> Process:
        return self.random.choice(self.world.running)

    @rule()
    def time_passes(self) -> None:
        type(self).steps += 1
        self.world.run(self.random.choice((0.05, 0.3, 1.0, 2.2, 4.0, 7.0)))

    @precondition(lambda self: self.world.running)
    @rule()
    def update(self) -> None:
        type(self).steps += 1
        self.world.propose(self.one())
        self.world.run(self.random.choice((0.2, 1.5, 4.0)))

    @precondition(lambda self: self.world.running)
    @rule()
    def strike_an_update(self) -> None:
        type(self).steps += 1
        when = self.random.choice(("before", "after", "answered"))
        point, what = self.random.choice(POINTS), self.random.choice(FAULTS)
        # Within a hold, within a lease, and longer than both.
        seconds = self.random.choice((0.3, 2.5, 5.0, 5.0))
        self.one().ambush = Ambush(when, point, what, seconds)
        self.world.propose(self.one())
        self.world.run(4.0)

    @rule()
    def network(self) -> None:
        type(self).steps += 1
        lost, late = (self.random.choice((0.0, 0.1, 0.5)) for _ in range(2))
        self.world.network = Network(lost, self.random.choice((0.0, 0.5)), late)

    @precondition(lambda self: len(self.world.running) < MOST)
    @rule()
    def start(self) -> None:
        type(self).steps += 1
        self.world.start()

    @precondition(lambda self: self.world.running)
    @rule()
    def fault(self) -> None:
        type(self).steps += 1
        seconds = self.random.choice((0.05, 0.3, 1.0, 2.2, 4.0, 7.0))
        self.world.strike(self.one(), self.random.choice(FAULTS), seconds)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


def run(machine: type[Fleets], examples: int, **more: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            **more,
        ),
    )


def test_no_fault_breaks_a_promise() -> None:
    run(Fleets, 40)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_fault_breaks_a_promise_in_100_000_steps() -> None:
    class Counted(Fleets):
        steps = 0

    while Counted.steps < 100_000:
        run(Counted, 200)
    print(f"{Counted.steps} steps")


# -- planted bugs ---------------------------------------------------------------------------


class Hurries(Replica):
    """Commits when all have prepared."""

    def _push(self, fleet: Fleet) -> Operation | None:
        return Advance(fleet.fence) if fleet.stage is Stage.PREPARED else super()._push(fleet)


def commits_before_all_hold(shared: Shared, operation: Operation) -> Shared:
    if isinstance(operation, Advance):
        held = {id: replace(each, held=operation.fence) for id, each in shared.members.items()}
        return replace(apply(replace(shared, members=held), operation), members=shared.members)
    return apply(shared, operation)


def aborts_what_is_committed(shared: Shared, operation: Operation) -> Shared:
    fleet = shared.fleet
    if fleet and isinstance(operation, Abort) and operation.fence == fleet.fence:
        before = max(0, fleet.generation - 1)
        return replace(shared, fleet=replace(fleet, stage=Stage.ABORTED, generation=before))
    return apply(shared, operation)


def takes_reports_of_the_excluded(shared: Shared, operation: Operation) -> Shared:
    if isinstance(operation, Beat) and operation.report.id not in shared.members:
        members = {**shared.members, operation.report.id: operation.report}
        return replace(shared, members=members)
    return apply(shared, operation)


class JoinsWithAnything(Replica):
    @property
    def _current(self) -> bool:
        return self.generation > 0


def lets_anything_join(shared: Shared, operation: Operation) -> Shared:
    if isinstance(operation, Join):
        members = {**shared.members, operation.report.id: operation.report}
        return replace(shared, members=members)
    return apply(shared, operation)


class ResumesAlone(Replica):
    """Admits again when its hold is over, without a look at what became of the update."""

    def call(self, now: float) -> Any:
        if self.held and now - self._held_at >= self.timings.hold:
            self.held = 0
        return super().call(now)


class CountsFromTheAnswer(Replica):
    def answered(self, call: Any, view: View, now: float) -> None:
        self._sent_at = now
        super().answered(call, view, now)


PLANTED: dict[str, dict[str, Any]] = {
    "a commit does not wait for all to hold": {
        "replica": Hurries,
        "transaction": commits_before_all_hold,
    },
    "a held replica resumes by itself": {"replica": ResumesAlone},
    "a lease counts from the answer": {"replica": CountsFromTheAnswer},
    "a replica joins with any generation": {
        "replica": JoinsWithAnything,
        "transaction": lets_anything_join,
    },
    "what is committed is aborted": {"transaction": aborts_what_is_committed},
    "a replica that was excluded goes on": {
        "replica": JoinsWithAnything,
        "transaction": takes_reports_of_the_excluded,
    },
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    planted = {
        name: staticmethod(what) if name == "transaction" else what
        for name, what in PLANTED[bug].items()
    }
    machine = type("Planted", (Fleets,), planted)
    with pytest.raises(Violation):
        run(machine, 2000, derandomize=True, phases=[Phase.generate])
