"""`kill -9` of the server in an update: what it serves after its next start, and what it left.

Until the commit the old group, whole, and afterwards the new one; no process outlives the server.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future

import httpx
import pytest

from tests.models.faults import World
from tests.models.remote import changed, serving_models, workers
from tests.models.storm import Group
from tests.processes import wait_until_gone
from tests.serving import Server
from tests.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, World]]:
    directory = tmp_path_factory.mktemp("kills")
    with serving_models(directory) as (running, remote):
        yield running, World(remote, directory)


def ended(server: Server, world: World, by: signal.Signals) -> int:
    """End the server; once its processes are gone, start it again on what it left; its code."""
    processes = workers(server)
    server.process.send_signal(by)
    code = server.process.wait(timeout=60)
    wait_until_gone(processes)
    world.go_on()
    server.start()
    return code


def check(server: Server, world: World) -> None:
    """The group is whole, nothing is beside it, and an update works."""
    until(lambda: world.serves(world.served))
    assert len(workers(server)) == 2
    store = server.directory / "data" / "store"
    assert [*(store / "staging").iterdir(), *(store / "unpacking").iterdir()] == []
    rows = world.server.ask("GET", "/workRequests", params={"limit": 1000})
    assert {row["status"] for row in rows} <= {"SUCCEEDED", "FAILED", "CANCELED"}
    target = next(each for each in world.good if each is not world.served)
    assert changed(world.server, world.id, target.id) == "SUCCEEDED"
    world.served = target
    until(lambda: world.serves(target))
    assert len(workers(server)) == 2


def kill_in(phase: str, server: Server, world: World) -> None:
    world.hold()
    asking: Future[httpx.Response] | None = None
    if phase in ("load", "predict"):  # nothing is committed
        world.begin(world.group(**{phase: "wait()"}))
        world.reached()
    else:
        if phase == "drain":
            asking = world.lasting()
        else:
            world.hold_unload()
        world.switched(world.group())
        world.reached()
    ended(server, world, signal.SIGKILL)
    if asking is not None:
        assert isinstance(asking.exception(), httpx.TransportError)
    check(server, world)


@pytest.mark.parametrize("phase", ["predict", "drain"])
def test_kill_of_the_server_in_an_update(server: tuple[Server, World], phase: str) -> None:
    kill_in(phase, *server)


def test_server_that_is_stopped_while_a_load_hangs(server: tuple[Server, World]) -> None:
    running, world = server
    world.hold()
    world.begin(world.group(load="wait()"))
    world.reached()
    assert ended(running, world, signal.SIGTERM) == 0
    check(running, world)


@pytest.mark.long
@pytest.mark.parametrize("phase", ["load", "predict", "drain", "unload"])
def test_kill_of_the_server_in_each_phase(server: tuple[Server, World], phase: str) -> None:
    for _ in range(3):
        kill_in(phase, *server)


@pytest.mark.long
def test_kill_of_the_server_at_any_moment(server: tuple[Server, World]) -> None:
    """Also around the commit: one of both groups is whole, and it is the one that is recorded."""
    running, world = server
    chance, found = random.Random(14), set()
    for _ in range(20):
        old = world.served
        target = world.group()
        world.begin(target)
        time.sleep(chance.uniform(0.0, 0.5))  # at random is what this test means
        ended(running, world, signal.SIGKILL)
        recorded = world.server.ask("GET", f"/modelDeployments/{world.id}")
        details = recorded["modelDeploymentConfigurationDetails"]
        id = details["modelGroupConfigurationDetails"]["modelGroupId"]
        by_id: dict[str, Group] = {each.id: each for each in (old, target)}
        world.served = by_id[id]
        found.add(world.served is target)
        check(running, world)
    assert found == {True, False}
