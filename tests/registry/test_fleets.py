"""The store of a fleet does what the pure transactions do, on both databases, between processes."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from stacked.errors import RegistryUnusable
from stacked.fleet.shared import (
    Abort,
    Advance,
    Beat,
    Evict,
    Fleet,
    Found,
    Join,
    Leave,
    Look,
    Mode,
    Operation,
    Propose,
    Report,
    Shared,
    View,
    apply,
)
from stacked.registry import Registry
from stacked.registry import Shared as Schema
from stacked.registry.fleets import FleetStore, fleet_of
from tests.postgres import Postgres
from tests.serving import free_port

IDS = ("a/1", "b/1", "c/1")
FLEET = Fleet(Mode.GLOBAL, 1, "first", 1)


@pytest.fixture
def where(where: Path | Schema) -> Path | Schema:
    """A place of a fleet: a schema of its own, which no registry takes for another one."""
    return fleet_of(where) if isinstance(where, Schema) else where


def some_operation(chance: Random, shared: Shared) -> Operation:
    """One that may fit what is stored, or not."""
    fence = (shared.fleet.fence if shared.fleet else 1) - chance.choice((0, 0, 0, 1))
    generation = shared.fleet.generation if shared.fleet else 1
    id = chance.choice(IDS)
    beat = shared.members[id].beat if id in shared.members else 0
    ready, held = chance.choice(((0, 0), (fence, 0), (fence, fence), (fence, fence)))
    report = Report(id, id[0], beat + chance.choice((0, 1)), generation, ready, held)
    return chance.choice(
        (
            Look(),
            Found(FLEET),
            Join(report),
            Beat(report),
            Beat(report),
            Beat(report),
            Leave(id),
            Evict(id, beat),
            Propose(id, f"p{fence}", "next", fence),
            Advance(fence),
            Advance(fence),
            Abort(fence, "no"),
        )
    )


def test_every_operation_does_what_the_pure_one_does(where: Path | Schema) -> None:
    chance, others, shared = Random(1), Random(2), Shared()
    store = FleetStore(where, 5.0)
    proposed, committed = set[str](), {""}
    for _ in range(600):
        operation = some_operation(chance, shared)
        id = operation.report.id if isinstance(operation, Beat) else others.choice(IDS)
        shared = apply(shared, operation)
        seen = store.carry_out(id, operation)
        wanted = View.of(shared, id)
        assert seen._replace(members=()) == wanted._replace(members=())
        assert set(seen.members) == set(wanted.members)
        if (fleet := shared.fleet) is not None:
            proposed.add(fleet.proposal)
            committed |= {fleet.proposal} if fleet.generation == fleet.fence else set()
    committed.remove("")
    assert committed, "no update was committed, which is to be compared too"
    assert {each for each in proposed if store.happened(each)} == committed
    store.close()


def test_everything_is_seen_with_the_seconds_since_each_report(where: Path | Schema) -> None:
    store = FleetStore(where, 5.0)
    assert store.seen() == (Shared(), {}, {})
    store.carry_out("", Found(FLEET))
    reports = [Report(id, id[0], 1, 1) for id in IDS]
    for report in reports:
        store.carry_out(report.id, Join(report))
    for _ in range(3):
        store.carry_out(IDS[0], Beat(replace(reports[0], beat=2)))
    seen = store.seen()
    assert seen.shared.fleet == FLEET
    assert set(seen.shared.members.values()) == {replace(reports[0], beat=2), *reports[1:]}
    assert set(seen.ago) == set(IDS)
    assert all(0 <= seconds < 600 for seconds in seen.ago.values())
    store.close()


def test_what_a_member_lacks_is_of_one_generation_and_one_stay(where: Path | Schema) -> None:
    store = FleetStore(where, 5.0)
    store.carry_out("", Found(FLEET))
    for id in IDS:
        store.carry_out(id, Join(Report(id, id[0], 1, 1)))
    many = {f"ocid1.model.{number}": f"it {{died}} at {number}\0" for number in range(10_000)}
    store.put_lacking(IDS[0], 1, many)
    store.put_lacking(IDS[1], 2, many)
    store.put_lacking("nobody", 1, many)
    store.carry_out(IDS[0], Beat(Report(IDS[0], "a", 2, 1)))
    assert store.seen().lacking == {IDS[0]: many, IDS[1]: {}, IDS[2]: {}}
    store.put_lacking(IDS[0], 1, {"m": "why"})
    assert store.seen().lacking[IDS[0]] == {"m": "why"}
    store.carry_out(IDS[0], Leave(IDS[0]))
    store.carry_out(IDS[0], Join(Report(IDS[0], "a", 3, 1)))
    assert store.seen().lacking[IDS[0]] == {}
    store.close()


def test_the_rows_of_a_fleet_are_not_among_those_of_its_registry(postgres: Postgres) -> None:
    place = postgres.shared()
    with Registry(place) as registry:
        store = FleetStore(fleet_of(place))
        with registry._database.read() as connection:
            others = registry._database.registries(connection)
        assert fleet_of(place).schema not in others
        assert len(fleet_of(replace(place, schema="stacked_" + 49 * "x")).schema) <= 63
        store.close()


def test_a_database_that_is_away_is_said_as_of_the_registry() -> None:
    place = fleet_of(Schema(f"postgresql://nobody@127.0.0.1:{free_port()}/none", "stacked_x"))
    with pytest.raises(RegistryUnusable, match="check that it runs"):
        FleetStore(place)


def propose_many(path: Path, id: str, times: int) -> None:
    store = FleetStore(path, 30.0)
    for number in range(times):
        fleet = store.carry_out(id, Look()).fleet
        assert fleet is not None
        store.carry_out(id, Propose(id, f"{id} {number}", id, fleet.fence))
        seen = store.carry_out(id, Look()).fleet
        assert seen is not None
        store.carry_out(id, Abort(seen.fence, "again"))
    store.close()


@pytest.mark.parametrize("processes", [3])
def test_processes_on_one_machine_share_a_file(tmp_path: Path, processes: int) -> None:
    path, times = tmp_path / "fleet.sqlite", 15
    store = FleetStore(path, 30.0)
    store.carry_out("", Found(FLEET))
    ids = [f"r{number}" for number in range(processes)]
    for id in ids:
        store.carry_out(id, Join(Report(id, id, 1, 1)))
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=propose_many, args=(path, id, times)) for id in ids]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0] * processes
    fleet = store.carry_out("", Look()).fleet
    assert fleet is not None
    # Each update that began is one number; of those that were too late none is.
    assert times <= fleet.fence - 1 <= processes * times
    assert fleet.generation == 1
    store.close()
