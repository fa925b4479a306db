"""Whatever goes wrong in an update of a group without a base, the old group serves on.

Over HTTP, with real worker processes. One server goes through all faults, so that what one leaves
behind fails the next: processes, models, leases, pins of the store, directories.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from stacked.errors import RegistryUnusable
from stacked.models import pool, workers
from stacked.models.engine import ModelsEngine
from stacked.serving.models import ModelsServing
from tests.contract.rig import Rig, rig
from tests.models.faults import World
from tests.models.making import pids_of, processes
from tests.models.remote import begun, changed, ended
from tests.processes import alive, wait_until_gone
from tests.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults"), drain_seconds=60) as running:
        yield running
        before = processes()
        running.retire()
        wait_until_gone(before)


@pytest.fixture(scope="module")
def living(server: Rig) -> World:
    return World(server, server.roots.parent)


@pytest.fixture
def world(living: World, server: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Each test ends with a good update, after which nothing is left but the group."""
    living.hold()
    yield living
    living.go_on()
    monkeypatch.undo()
    target = next(each for each in living.good if each is not living.served)
    assert changed(server, living.id, target.id) == "SUCCEEDED"
    living.served = target
    check(living, server)


def engine_of(server: Rig) -> ModelsEngine:
    active = server.service._slot.active
    assert active is not None
    assert isinstance(active.serving, ModelsServing)
    assert isinstance(active.serving.engine, ModelsEngine)
    return active.serving.engine


def check(world: World, server: Rig) -> None:
    """The group that is served answers, and there is nothing beside it."""
    until(lambda: world.serves(world.served))
    active, engine = server.service._slot.active, engine_of(server)
    assert active is not None
    live = active.serving.live
    numbers = {handle.number for handle in live.routing.handles.values()}
    assert len(numbers) == 3
    until(lambda: not live.leases.things())
    assert engine._held.keys() == numbers
    assert engine._promised == 0
    there = [number for each in engine._pools.values() for number in each.models]
    assert sorted(there) == sorted(numbers)
    # In each process what its pool has, and one process for ONNX and one for the score.py.
    until(lambda: len(pids_of(engine)) == 2)
    for each in engine._pools.values():
        (worker,) = each.workers
        until(lambda worker=worker, each=each: worker.loaded.keys() == each.models.keys())
    until(lambda: sorted(pid for pid, _ in alive(list(processes()))) == sorted(pids_of(engine)))
    stored = {digest for member in live.routing.members for digest in member.content.stored}
    assert server.service._slot.in_use == stored
    store = server.service.catalogue.models.root
    assert [*(store / "staging").iterdir(), *(store / "unpacking").iterdir()] == []
    assert server.state(world.id) == "ACTIVE"


def stays(world: World, server: Rig, work: str, how: str = "FAILED") -> str:
    """The old group is whole once the work has ended so; the reason."""
    assert ended(server, work) == how
    check(world, server)
    return world.errors(work)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def coming(server: Rig, before: list[int]) -> int:
    """The process that an update has started."""
    (pid,) = set(pids_of(engine_of(server))) - set(before)
    return pid


LOADS = {
    "raises": ("raise ValueError('broken')", "broken"),
    "ends its process": ("os._exit(5)", "exit code 5"),
    "hangs": ("time.sleep(600)", "no answer in"),
}
TRIES = {
    "raises": ("raise ValueError('broken')", "broken"),
    "ends its process": ("os._exit(6)", "exit code 6"),
    "hangs": ("time.sleep(600)", "no answer in"),
    "gives NaN": ("return float('nan')", "not JSON"),
}


@pytest.fixture
def impatient(server: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LOAD_SECONDS", 1.5)
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(engine_of(server), "_deadline", 1.5)


@pytest.mark.parametrize("how", LOADS)
def test_member_that_does_not_load(
    world: World, server: Rig, how: str, request: pytest.FixtureRequest
) -> None:
    does, said = LOADS[how]
    if how == "hangs":
        request.getfixturevalue("impatient")
    assert said in stays(world, server, world.begin(world.group(load=does)))


@pytest.mark.parametrize("how", TRIES)
def test_member_that_does_not_answer_its_canary(
    world: World, server: Rig, how: str, request: pytest.FixtureRequest
) -> None:
    does, said = TRIES[how]
    if how == "hangs":
        request.getfixturevalue("impatient")
    assert said in stays(world, server, world.begin(world.group(predict=does)))


def test_model_whose_answer_is_not_finite(world: World, server: Rig) -> None:
    assert "NaN" in stays(world, server, world.begin(world.not_finite()))


def test_memory_that_does_not_suffice(
    world: World, server: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_of(server), "_reserve", 2**62)
    assert "in reserve" in stays(world, server, world.begin(world.group()))


def test_memory_that_is_short_between_two_loads(
    world: World, server: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten members are loaded in two batches."""
    target = world.group(more=9, load="wait()")
    work = world.begin(target)
    world.reached()
    monkeypatch.setattr(engine_of(server), "_reserve", 2**62)
    world.go_on()
    assert "in reserve" in stays(world, server, work)


def test_commit_that_fails(world: World, server: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RegistryUnusable("database or disk is full")

    monkeypatch.setattr(server.service.registry.deployments, "commit", full)
    assert "disk is full" in stays(world, server, world.begin(world.group()))


def cancel(server: Rig, work: str) -> httpx.Response:
    return server.http.delete(f"/20190101/workRequests/{work}")


@pytest.mark.parametrize("phase", ["load", "predict"])
def test_update_that_is_canceled(world: World, server: Rig, phase: str) -> None:
    work = world.begin(world.group(**{phase: "wait()"}))
    world.reached()
    second = begun(server, world.id, world.good[0].id)
    assert (second.status_code, world.serves(world.served)) == (409, True)
    assert cancel(server, work).is_success
    stays(world, server, work, "CANCELED")


def test_update_that_has_switched_is_not_canceled_and_ends_with_the_last_request(
    world: World, server: Rig
) -> None:
    asking = world.lasting()
    work = world.switched(world.group())
    assert cancel(server, work).status_code == 409
    assert world.serves(world.served)
    world.go_on()
    assert asking.result().json() == 0
    assert ended(server, work) == "SUCCEEDED"
    check(world, server)


@pytest.mark.parametrize("phase", ["load", "predict"])
def test_kill_of_a_process_that_an_update_has_started(
    world: World, server: Rig, phase: str
) -> None:
    before = pids_of(engine_of(server))
    work = world.begin(world.group(**{phase: "wait()"}))
    world.reached()
    kill(coming(server, before))
    said = stays(world, server, work)
    assert "signal 9" in said


@pytest.mark.parametrize("phase", ["load", "predict"])
def test_kill_of_a_process_that_serves_while_an_update_runs(
    world: World, server: Rig, phase: str
) -> None:
    """All of it is there again before the update goes on, which then succeeds."""
    before = pids_of(engine_of(server))
    target = world.group(**{phase: "wait()"})
    work = world.begin(target)
    world.reached()
    for pid in before:
        kill(pid)
    until(lambda: world.serves(world.served))
    world.go_on()
    assert ended(server, work) == "SUCCEEDED", world.errors(work)
    world.served = target
    check(world, server)


@pytest.mark.parametrize("phase", ["drain", "remove"])
def test_kill_of_a_process_that_is_to_end_after_the_switch(
    world: World, server: Rig, phase: str
) -> None:
    before = pids_of(engine_of(server))
    asking = None
    if phase == "drain":
        asking = world.lasting()
    else:
        world.hold_unload()
    work = world.switched(world.group())
    world.reached()
    for pid in before:
        kill(pid)
    if asking:
        assert asking.result().json()["code"] == "EngineDead"
    assert ended(server, work) == "SUCCEEDED"
    check(world, server)


@pytest.mark.usefixtures("impatient")
def test_model_that_hangs_as_it_is_removed(world: World, server: Rig) -> None:
    world.hold_unload()
    work = world.switched(world.group())
    world.reached()
    assert ended(server, work) == "SUCCEEDED"
    check(world, server)


@pytest.mark.usefixtures("world")
def test_collector_finds_nothing_of_the_groups_that_never_served(
    living: World, server: Rig
) -> None:
    """Failed updates pin nothing: only what records name stays."""
    before = processes()
    report = server.http.post("/stacked/collect?dryRun=false")
    assert report.is_success, report.text
    check(living, server)
    assert before.keys() == processes().keys()
