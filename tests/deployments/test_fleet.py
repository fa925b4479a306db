"""Several replicas serve one deployment: a LIVE update goes to all of them, or to none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from stacked.config import FleetConfig
from stacked.deployment.deployments import Revision
from stacked.errors import EngineLoadFailed, NotAllowed, NotReady, RecordConflict, UpdateInProgress
from stacked.fleet.replica import Gate
from stacked.fleet.shared import Advance, Beat, Mode, Operation, Propose
from stacked.steps import Silent
from tests.deployments.fleets import Fleet, Replica
from tests.deployments.machine import engine_of
from tests.waiting import until_async as until


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path) as made:
        yield made


def generations(fleet: Fleet) -> set[int]:
    return {each.generation for each in fleet.replicas}


def contents(fleet: Fleet) -> set[tuple[int, int]]:
    """How many adapters each engine has, and how many it has staged."""
    return {(len(each.engine.held), len(each.engine.staged)) for each in fleet.replicas}


async def test_an_update_reaches_every_replica_under_requests(fleet: Fleet) -> None:
    one, two, _ = await fleet.of("one", "two", "three")
    async with fleet.under_requests():
        for number, replica in ((2, one), (3, two), (2, two)):
            seen = len(fleet.admitted)
            work = await replica.update(fleet.machine.group(number))
            assert await replica.end(work) == "SUCCEEDED"
            await until(partial(lambda seen: len(fleet.admitted) > seen + 20, seen))
            assert fleet.admitted[-1] == fleet.machine.registry.deployments.get(fleet.id).generation
            assert "3 of 3 replicas hold their requests" in fleet.machine.logs(work)
    await until(lambda: (generations(fleet), contents(fleet)) == ({4}, {(1, 0)}))
    assert sum(each.refused for each in fleet.replicas) == 0
    record = fleet.machine.registry.deployments.get(fleet.id)
    assert (record.state.value, record.generation) == ("ACTIVE", 4)
    states = fleet.machine.registry.deployments.list_members(fleet.id).items
    assert {(one.key, one.state.value) for one in states} == {
        ("base", "SUCCESS"),
        ("k2", "SUCCESS"),
    }


async def test_an_update_may_begin_where_requests_of_the_group_before_are_still_answered(
    fleet: Fleet,
) -> None:
    one, two = await fleet.of("one", "two")
    _, lease = two.serving.live.admit({"the header": "k1"})
    with lease:
        assert await one.end(await one.update(fleet.machine.group(2))) == "SUCCEEDED"
        await until(lambda: two.generation == 2)
        work = await two.update(fleet.machine.group(3))
        assert generations(fleet) == {2}
    assert await two.end(work) == "SUCCEEDED"
    await until(lambda: (generations(fleet), contents(fleet)) == ({3}, {(1, 0)}))


async def test_one_that_refuses_is_named_and_all_others_drop_what_they_staged(
    fleet: Fleet,
) -> None:
    one, two, _ = await fleet.of("one", "two", "three")
    two.engine.fails["adopt"] = EngineLoadFailed("no memory")
    async with fleet.under_requests():
        work = await one.update(fleet.machine.group(2))
        assert await one.end(work) == "FAILED"
    assert fleet.status == "ACTIVE"
    assert "replica two: 1 models could not be staged" in fleet.machine.reason(fleet.id)
    await until(lambda: contents(fleet) == {(1, 0)})
    assert generations(fleet) == {1} == set(fleet.admitted)
    two.engine.fails.clear()
    assert await two.end(await two.update(fleet.machine.group(2))) == "SUCCEEDED"


async def test_the_replica_that_runs_the_update_may_refuse_it(fleet: Fleet) -> None:
    one, _ = await fleet.of("one", "two")
    one.engine.fails["adopt"] = EngineLoadFailed("no memory")
    work = await one.update(fleet.machine.group(2))
    assert await one.end(work) == "FAILED"
    assert fleet.machine.errors(work) == ["EngineLoadFailed", "UpdateFailed"]
    assert "replica one" in fleet.machine.reason(fleet.id)
    await until(lambda: contents(fleet) == {(1, 0)})


def at(kind: type[Operation], when: str, nth: int = 1, **facts: bool) -> object:
    """A fall at the nth operation of a kind; of reports, those that say this."""
    seen = 0

    def falls(moment: str, operation: Operation) -> bool:
        nonlocal seen
        fits = isinstance(operation, kind) and all(
            bool(getattr(operation.report, name)) is value  # type: ignore[union-attr]
            for name, value in facts.items()
        )
        seen += fits and moment == when
        return seen >= nth and moment == when and fits

    return falls


FALLS = {
    "when it is proposed": partial(at, Propose, "after"),
    "before it says that it is ready": partial(at, Beat, "before", ready=True),
    "before all hold": partial(at, Advance, "before"),
    "when all are to hold": partial(at, Advance, "after"),
    "before it says that it holds": partial(at, Beat, "before", held=True),
    "before the commit": partial(at, Advance, "before", 2),
    "when it is committed": partial(at, Advance, "after", 2),
}


SOME = ("when it is proposed", "when all are to hold", "when it is committed")


@pytest.mark.parametrize(
    "where",
    [pytest.param(each, marks=() if each in SOME else pytest.mark.long) for each in FALLS],
)
async def test_the_replica_that_runs_the_update_falls(where: str, tmp_path: Path) -> None:
    """All others serve the same, and the records say what became of it."""
    async with Fleet(tmp_path, lease_seconds=1) as fleet:
        await falls(where, fleet)


async def falls(where: str, fleet: Fleet) -> None:
    one, two, three = await fleet.of("one", "two", "three")
    others = (two, three)
    one.door.falls = FALLS[where]()  # type: ignore[assignment]
    group, before = fleet.machine.group(2), fleet.machine.registry.deployments.get(fleet.id)
    async with fleet.under_requests():
        work = await one.update(group)
        await until(lambda: one.door.cut)
        await until(lambda: not one.open)
        await until(lambda: ended(fleet, work.id), 20)
        await fleet.ready(*others)
    record = fleet.machine.registry.deployments.get(fleet.id)
    happened = where == "when it is committed"
    assert record.group_id == (group if happened else before.group_id)
    assert {each.generation for each in others} == {record.generation}
    assert fleet.status == "ACTIVE"
    status = fleet.machine.registry.work_requests.get(work.id).status.value
    assert status == ("SUCCEEDED" if happened else "FAILED")
    one.door.cut, one.door.falls = False, lambda when, operation: False
    await fleet.ready()
    assert await two.end(await two.update(fleet.machine.group(3))) == "SUCCEEDED"
    await until(lambda: len(generations(fleet)) == 1)


@pytest.mark.parametrize(
    "where",
    [pytest.param(each, marks=() if each in SOME else pytest.mark.long) for each in FALLS],
)
async def test_an_update_that_others_have_followed_is_ended_as_it_went(
    where: str, fleet: Fleet
) -> None:
    """Its replica hears nothing of it before a later one is committed."""
    one, two = await fleet.of("one", "two")
    one.door.falls = FALLS[where]()  # type: ignore[assignment]
    first, second = fleet.machine.group(2), fleet.machine.group(3)
    work = await one.update(first)
    await until(lambda: one.door.cut)
    later = None
    while later is None:
        await asyncio.sleep(0.01)
        with contextlib.suppress(UpdateInProgress, RecordConflict):  # until the records follow
            later = await two.update(second)
    assert await two.end(later) == "SUCCEEDED"
    one.door.cut, one.door.falls = False, lambda when, operation: False
    happened = where == "when it is committed"
    assert await one.end(work) == ("SUCCEEDED" if happened else "FAILED")
    await fleet.ready()
    record = fleet.machine.registry.deployments.get(fleet.id)
    assert (record.group_id, fleet.status) == (second, "ACTIVE")
    assert generations(fleet) == {record.generation} == {3}


async def test_work_that_others_have_ended_before_it_was_proposed_is_not_done(
    fleet: Fleet,
) -> None:
    one, two = await fleet.of("one", "two")
    one.door.falls = at(Propose, "before")  # type: ignore[assignment]
    work = await one.update(fleet.machine.group(2))
    await until(lambda: one.door.cut)
    fleet.machine.registry.deployments.end_update(fleet.id, work.id, "it seemed to be gone")
    one.door.cut, one.door.falls = False, lambda when, operation: False
    assert await one.end(work) == "FAILED"
    assert generations(fleet) == {1}
    await until(lambda: contents(fleet) == {(1, 0)})
    assert fleet.status == "ACTIVE"
    assert await two.end(await two.update(fleet.machine.group(2))) == "SUCCEEDED"


def ended(fleet: Fleet, work: str) -> bool:
    return fleet.machine.registry.work_requests.get(work).time_finished is not None


async def test_without_the_store_nothing_is_admitted_after_a_lease(fleet: Fleet) -> None:
    one, two = await fleet.of("one", "two")
    one.door.cut = two.door.cut = True
    await until(lambda: not one.open and not two.open)
    with pytest.raises(NotReady, match="does not reach the database"):
        await one.ask()
    with pytest.raises(NotReady):
        await one.member.free()
    one.door.cut = two.door.cut = False
    await fleet.ready()
    assert await one.ask() == 1


async def test_a_replica_may_serve_on_without_the_store(tmp_path: Path) -> None:
    async with Fleet(tmp_path, on_partition="serve") as fleet:
        one, two = await fleet.of("one", "two")
        one.door.cut = True
        await until(lambda: one.member.gate.lease_left == 0)
        assert await one.ask() == 1
        fleet.config = FleetConfig(mode=Mode.SESSION)  # its promise is given up
        assert await two.end(await two.update(fleet.machine.group(2))) == "SUCCEEDED"
        assert (await one.ask(), await two.ask()) == (1, 2)
        one.door.cut = False
        await until(lambda: one.generation == 2 and one.open)


async def test_one_that_is_evicted_loads_what_the_others_serve_and_returns(fleet: Fleet) -> None:
    one, two = await fleet.of("one", "two")
    two.door.cut = True
    async with fleet.under_requests():
        assert await one.end(await one.update(fleet.machine.group(2))) == "SUCCEEDED"
        two.engine.fails["adopt"] = EngineLoadFailed("no memory")
        two.door.cut = False
        await until(lambda: two.member.gate.trouble)
        with pytest.raises(NotReady, match="no memory"):
            await two.ask()
        assert (two.generation, len(two.engine.held)) == (1, 1)
        two.engine.fails.clear()
        await fleet.ready()
    await until(lambda: (generations(fleet), contents(fleet)) == ({2}, {(1, 0)}))


async def test_one_that_joins_in_the_middle_serves_when_it_has_what_is_committed(
    fleet: Fleet,
) -> None:
    one, _ = await fleet.of("one", "two")
    one.engine.gate = asyncio.Event()
    work = await one.update(fleet.machine.group(2))
    await until(lambda: "staging" in fleet.machine.logs(work))
    three = await fleet.start("three")
    await until(lambda: three.member.gate.view.fleet is not None)
    assert not three.open
    with pytest.raises(NotReady, match="before it has"):
        await three.ask()
    with pytest.raises(UpdateInProgress):
        await one.update(fleet.machine.group(3))
    one.engine.gate.set()
    assert await one.end(work) == "SUCCEEDED"
    await fleet.ready()
    await until(lambda: generations(fleet) == {2})


async def test_what_a_start_has_loaded_is_not_loaded_again(fleet: Fleet) -> None:
    await fleet.of("one", "two")
    assert [call for each in fleet.replicas for call in each.engine.calls] == ["stage", "adopt"] * 2


async def test_one_that_leaves_is_waited_for_by_nobody(fleet: Fleet) -> None:
    one, two = await fleet.of("one", "two")
    await two.member.leave()
    assert two.member.gate.now is Gate.CLOSED
    with pytest.raises(NotReady, match="leaves"):
        await two.ask()
    # A request that was admitted while this process was stopped is not.
    route, lease = two.serving.live.admit({})
    with pytest.raises(NotReady, match="leaves"):
        two.member.gate.check(route.generation, lease)
    assert not two.serving.live.leases.things()
    two.door.cut = True
    work = await one.update(fleet.machine.group(2))
    assert await one.end(work) == "SUCCEEDED"
    assert "1 of 1 replicas" in fleet.machine.logs(work)
    assert (one.generation, two.generation) == (2, 1)


async def test_one_whose_engine_has_died_comes_back_with_what_it_served(fleet: Fleet) -> None:
    one, two = await fleet.of("one", "two")
    lost = two.slot.lose("its engine has died")
    await until(lambda: not two.member.gate.replica.member)  # type: ignore[union-attr]
    assert await one.end(await one.update(fleet.machine.group(2))) == "SUCCEEDED"
    assert not two.open
    serving = await fleet.machine.starts.again(lost.serving, {}, Silent())
    two.slot.serve(lost._replace(serving=serving))
    await fleet.ready()
    await until(lambda: generations(fleet) == {2})
    assert len(engine_of(serving).held) == 1


async def test_an_update_can_be_canceled_before_the_replicas_switch(fleet: Fleet) -> None:
    one, two = await fleet.of("one", "two")
    two.engine.gate = asyncio.Event()
    work = await one.update(fleet.machine.group(2))
    await until(lambda: "1 of 2 replicas have the group ready" in fleet.machine.logs(work))
    await until(lambda: not two.member.gate.view.fleet.at_rest)  # type: ignore[union-attr]
    with pytest.raises(RecordConflict, match="runs on replica one"):
        await two.deployments.cancel(work.id)
    await one.deployments.cancel(work.id)
    assert await one.end(work) == "CANCELED"
    two.engine.gate.set()
    await until(lambda: contents(fleet) == {(1, 0)})
    assert (fleet.status, generations(fleet)) == ("ACTIVE", {1})
    assert await two.end(await two.update(fleet.machine.group(2))) == "SUCCEEDED"


async def test_requests_of_the_group_before_finish_while_the_next_update_waits(
    fleet: Fleet,
) -> None:
    one, two = await fleet.of("one", "two")
    lease = two.serving.live.admit({"key": "k1"}).lease
    assert await one.end(await one.update(fleet.machine.group(2))) == "SUCCEEDED"
    work = await one.update(fleet.machine.group(3))
    await until(lambda: "1 of 2 replicas have" in fleet.machine.logs(work))
    lease.release()
    assert await one.end(work) == "SUCCEEDED"
    await until(lambda: contents(fleet) == {(1, 0)})


async def test_in_session_mode_a_client_waits_for_what_it_has_seen(tmp_path: Path) -> None:
    async with Fleet(tmp_path, Mode.SESSION, hold_seconds=1) as fleet:
        one, two = await fleet.of("one", "two")
        with pytest.raises(NotReady, match="not switched"):
            await two.ask(after=2)
        waiting = asyncio.create_task(two.ask(after=2))
        async with fleet.under_requests():
            work = await one.update(fleet.machine.group(2))
            assert await one.end(work) == "SUCCEEDED"
            assert await waiting == 2
        assert sum(each.refused for each in fleet.replicas) == 0
        assert "hold" not in fleet.machine.logs(work)


async def test_every_replica_says_which_of_them_does_not_serve_a_model(fleet: Fleet) -> None:
    one, two, three = await fleet.of("one", "two", "three")
    good, hung = ("SUCCESS", ""), ("INCONSISTENT", "replica three: [it] hung")
    assert await one.end(await one.update(fleet.machine.group(1, 2))) == "SUCCEEDED"
    await until(lambda: generations(fleet) == {2})

    async def say(*expected: tuple[str, str]) -> None:
        states = dict(zip(("base", "k1", "k2"), (good, *expected), strict=True))
        await until(lambda: all(each.states() == states for each in fleet.replicas))

    await say(good, good)
    two.withhold("k1", "it died")
    await say(("INCONSISTENT", "replica two: it died"), good)
    three.withhold("k1", "it died")
    three.withhold("k2", "[it] hung")
    await say(("INCONSISTENT", "replica three, two: it died"), hung)
    one.withhold("k1", "it hung")
    await say(("FAILED", "replica one: it hung; replica three, two: it died"), hung)
    of_two = ("FAILED", "replica one: it hung; replica two: it died")
    three.door.cut = True  # it serves nothing then, and is no part of the list
    await say(of_two, good)
    three.door.cut = False
    await say(("FAILED", "replica one: it hung; replica three, two: it died"), hung)
    await three.member.leave()
    await say(of_two, good)
    assert await two.end(await two.update(fleet.machine.group(1, 2))) == "SUCCEEDED"
    await say(good, good)


async def test_a_replica_that_returns_with_a_model_quarantined_says_so_again(
    fleet: Fleet,
) -> None:
    one, two = await fleet.of("one", "two")
    lost = two.slot.lose("its engine has died")
    await until(lambda: not two.member.gate.replica.member)  # type: ignore[union-attr]
    quarantined = {member.content.digest: "it died" for member in lost.serving.live.routing.members}
    serving = await fleet.machine.starts.again(lost.serving, quarantined, Silent())
    assert one.states()["k1"] == ("SUCCESS", "")
    two.slot.serve(lost._replace(serving=serving))
    await until(lambda: one.states()["k1"] == ("INCONSISTENT", "replica two: it died"))


async def test_what_others_could_not_follow_is_refused(fleet: Fleet) -> None:
    one: Replica
    (one,) = await fleet.of("one")
    deployments, id = one.deployments, fleet.id
    for refused in (
        deployments.deactivate(id),
        deployments.activate(id),
        deployments.delete(id),
        deployments.update(id, Revision(fleet.machine.group(2))),
        deployments.create(fleet.machine.registry.deployments.get(id)),
    ):
        with pytest.raises(NotAllowed, match="in a fleet"):
            await refused
    work = await deployments.update(id, Revision(described={"display_name": "renamed"}))
    assert await one.end(work) == "SUCCEEDED"
