"""The cases of the protocol one by one."""

from __future__ import annotations

import pytest

from stacked.fleet.replica import Gate
from stacked.fleet.shared import Mode, Stage
from tests.fleet.world import Ambush, Process, World


def world_of(mode: Mode = Mode.GLOBAL, count: int = 3) -> World:
    world = World(1, mode)
    for _ in range(count):
        world.start()
    world.run(6.0)
    return world


def generations(world: World) -> set[int]:
    return {each.machine.generation for each in world.running}


def reason(process: Process) -> str:
    outcome = process.machine.outcome
    assert outcome is not None
    return outcome.reason


@pytest.mark.parametrize("mode", Mode)
def test_an_update_reaches_every_replica(mode: Mode) -> None:
    world = world_of(mode)
    world.propose(world.processes[1])
    world.run(4.0)
    assert reason(world.processes[1]) == ""
    assert generations(world) == {2}
    assert world.answers > 0


def test_a_replica_that_refuses_ends_the_update_for_all_and_is_named() -> None:
    world = world_of()
    world.processes[2].refuses = True
    world.propose(world.processes[0])
    world.run(4.0)
    assert reason(world.processes[0]) == f"replica {world.processes[2].name}: its canary failed"
    assert generations(world) == {1}
    world.settle()


def test_an_update_goes_on_without_a_replica_that_has_died() -> None:
    world = world_of()
    world.strike(world.processes[2], "crash", 0)
    world.propose(world.processes[0])
    world.run(8.0)
    assert reason(world.processes[0]) == ""
    assert generations(world) == {2}


def test_a_replica_that_dies_at_the_switch_ends_the_update_when_the_hold_is_over() -> None:
    world = world_of()
    world.processes[2].ambush = Ambush("before", "held", "crash", 0)
    world.propose(world.processes[0])
    world.run(8.0)
    assert "held its requests" in reason(world.processes[0])
    assert generations(world) == {1}
    world.settle()


def test_an_update_whose_coordinator_dies_is_ended_by_the_others() -> None:
    world = world_of()
    world.processes[0].ambush = Ambush("before", "advance", "crash", 0)
    world.propose(world.processes[0])
    world.run(8.0)
    fleet = world.shared.fleet
    assert fleet is not None
    assert (fleet.stage, fleet.reason) == (
        Stage.ABORTED,
        "the replica that ran the update is gone",
    )
    world.settle()


def test_without_the_store_nothing_is_admitted_after_a_lease() -> None:
    world = world_of()
    world.strike(world.processes[0], "store away", 60.0)
    world.run(4.0)
    gates = {each.machine.gate(each.clock(world.now)) for each in world.running}
    assert gates == {Gate.CLOSED}
    world.settle()


def test_two_updates_at_once_are_one_and_a_refusal() -> None:
    world = world_of()
    for process in world.processes[:2]:
        world.propose(process)
    world.run(4.0)
    told = sorted(reason(process) for process in world.processes[:2])
    assert told[0] == ""
    assert "another replica began an update first" in told[1]
    assert generations(world) == {2}


def test_a_replica_that_starts_later_serves_what_is_committed() -> None:
    world = world_of()
    world.propose(world.processes[0])
    world.run(4.0)
    world.start()
    assert world.processes[-1].machine.gate(world.now) is Gate.CLOSED
    world.run(4.0)
    assert generations(world) == {2}


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.5])
def test_an_update_that_is_withdrawn_before_it_advances_reaches_nobody(seconds: float) -> None:
    world = world_of()
    process = world.processes[0]
    world.propose(process)
    world.run(seconds)
    machine = process.machine
    assert all(each.machine.held == 0 for each in world.running)
    machine.withdraw("it was canceled")
    world.resume(process)
    world.run(4.0)
    assert "it was canceled" in reason(process)
    assert generations(world) == {1}
    world.settle()


def test_an_update_that_ended_is_orphaned_when_its_coordinator_is_silent() -> None:
    world = world_of()
    world.propose(world.processes[0])
    world.run(4.0)
    others = world.processes[1:]
    assert not any(each.machine.orphaned for each in world.processes)
    world.strike(world.processes[0], "crash", 0)
    world.run(6.0)
    assert all(each.machine.orphaned for each in others)
