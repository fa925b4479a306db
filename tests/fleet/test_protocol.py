"""The protocol against everything that may go wrong, and against bugs that are planted in it.

The long form, `pytest -m long tests/fleet/test_protocol.py`, takes 100,000 steps, and finds those
bugs that are rarely met.
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
from tests.fleet.world import Ambush, Network, Violation, World

MOST = 4
POINTS = (
    *("join", "beat", "ready", "held", "propose", "advance", "abort", "evict"),
    *("load", "prepare", "switch", "drop"),
)
WHEN = ("before", "after", "ended")
SECONDS = (0.05, 0.3, 1.0, 2.2, 4.0, 7.0)
LONG = (0.3, 2.5, 5.0, 5.0)  # within a hold, within a lease, and longer than both
FAULTS = (
    "cut",
    "mute",
    "pause",
    "crash",
    "engine dies",
    "refuse",
    "leave",
    "store away",
    "withdraw",
)


class Fleets(RuleBasedStateMachine):
    """Up to four replicas; a step is a fault, an update, or some time.

    One rule, as hypothesis leaves some of several out; details are drawn from a seed.
    """

    replica: ClassVar[type[Replica]] = Replica
    transaction: Any = staticmethod(apply)
    steps: ClassVar[int] = 0
    points: ClassVar[tuple[str, ...]] = POINTS
    faults: ClassVar[tuple[str, ...]] = FAULTS

    @initialize(seed=st.integers(0, 2**64 - 1))
    def begin(self, seed: int) -> None:
        self.random = Random(seed)
        mode = self.random.choice((Mode.GLOBAL, Mode.GLOBAL, Mode.SESSION))
        self.world = World(seed, mode, replica=self.replica, transaction=self.transaction)
        for _ in range(self.random.randint(2, MOST)):
            self.world.start()
        self.world.run(4.0)
        self.world.network = Network(late=self.random.choice((0.0, 0.1, 0.3)))

    @rule(what=st.sampled_from(("time", "update", "strike", "network", "start", "fault")))
    def step(self, what: str) -> None:
        type(self).steps += 1
        chance, world = self.random, self.world
        one = chance.choice(world.running) if world.running else None
        if what == "time":
            world.run(chance.choice(SECONDS))
        elif what == "network":
            lost, late = (chance.choice((0.0, 0.1, 0.5)) for _ in range(2))
            world.network = Network(lost, chance.choice((0.0, 0.5)), late)
        elif what == "start" and len(world.running) < MOST:
            world.start()
        elif what == "fault" and one is not None:
            world.strike(one, chance.choice(self.faults), chance.choice(SECONDS))
        elif what in ("update", "strike") and one is not None:
            if what == "strike":
                when, point, fault = (
                    chance.choice(each) for each in (WHEN, self.points, self.faults)
                )
                one.ambush = Ambush(when, point, fault, chance.choice(LONG))
            world.propose(chance.choice(world.running))
            world.run(4.0 if what == "strike" else chance.choice((0.2, 1.5, 4.0)))

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
    run(Fleets, 20)


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
    "a lease counts from the answer": {
        "replica": CountsFromTheAnswer,
        # With every fault it is found in some 2,000 steps: answers must be late, and then cease.
        "points": ("beat", "ready"),
        "faults": ("mute",),
    },
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


RARE = ("a lease counts from the answer", "a replica that was excluded goes on")


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=pytest.mark.long if bug in RARE else ()) for bug in PLANTED]
)
def test_a_planted_bug_is_found(bug: str) -> None:
    planted = {
        name: staticmethod(what) if name == "transaction" else what
        for name, what in PLANTED[bug].items()
    }
    machine = type("Planted", (Fleets,), planted)
    with pytest.raises(Violation):
        run(machine, 2000, derandomize=True, phases=[Phase.generate])
