"""A process that ends at any point: the next one finds settled records, and serves what served."""

from __future__ import annotations

import asyncio

from stacked.deployment.deployments import Revision
from stacked.registry import Deployment
from tests.deployments.machine import Machine, engine_of
from tests.waiting import until_async as until


async def resumed(machine: Machine) -> Deployment | None:
    """Start as a server without a file does; what it serves again."""
    last = machine.ledger.last_active()
    if last is not None:
        await machine.deployments.resume(last)
        await machine.deployments.wait()
    return last


def status(machine: Machine, work_id: str) -> str:
    return machine.registry.work_requests.get(work_id).status.value


async def test_active_deployment_serves_again(machine: Machine) -> None:
    id = await machine.active(1)
    await machine.again()
    assert machine.state(id) == "ACTIVE"
    machine.starts.gate = asyncio.Event()
    last = machine.ledger.last_active()
    assert last is not None
    await machine.deployments.resume(last)
    assert machine.state(id) == "UPDATING"
    await machine.again()  # once more, in the middle of it
    assert await resumed(machine) is not None
    found = machine.registry.deployments.get(id)
    assert (found.state.value, found.generation) == ("ACTIVE", 1)
    assert machine.serves() == ["k1"]


async def test_unfinished_creation_is_failed(machine: Machine) -> None:
    machine.starts.gate = asyncio.Event()
    record, work = await machine.create(machine.group(1))
    await machine.again()
    assert machine.state(record.id) == "FAILED"
    assert "no group had been committed" in machine.reason(record.id)
    assert status(machine, work.id) == "FAILED"
    assert await resumed(machine) is None


async def test_unfinished_activation_leaves_it_inactive(machine: Machine) -> None:
    id = await machine.active(1)
    await machine.end(await machine.deployments.deactivate(id))
    machine.starts.gate = asyncio.Event()
    work = await machine.deployments.activate(id)
    await machine.again()
    assert machine.state(id) == "INACTIVE"
    assert status(machine, work.id) == "FAILED"
    assert await resumed(machine) is None


async def test_what_was_being_stopped_is_stopped(machine: Machine) -> None:
    id = await machine.active(1)
    machine.starts.started[0].live.admit({"key": "k1"})
    work = await machine.deployments.deactivate(id)
    await until(lambda: machine.slot.active is None)
    await machine.again()
    assert (machine.state(id), status(machine, work.id)) == ("INACTIVE", "SUCCEEDED")
    work = await machine.deployments.activate(id)
    await machine.end(work)
    machine.starts.started[0].live.admit({"key": "k1"})
    work = await machine.deployments.delete(id)
    await until(lambda: machine.slot.active is None)
    await machine.again()
    assert (machine.state(id), status(machine, work.id)) == ("DELETED", "SUCCEEDED")
    assert await resumed(machine) is None


async def test_unfinished_update_leaves_what_was_committed(machine: Machine) -> None:
    id = await machine.active(1)
    for beside in (True, False):
        machine.starts.enough = beside
        machine.starts.gate = asyncio.Event()
        environment = {"environmentVariables": {"PARAMS": "--max-model-len 7"}}
        work = await machine.deployments.update(id, Revision(machine.group(2), environment))
        await until(lambda work=work: "Importing" in machine.logs(work))
        await machine.again()
        assert status(machine, work.id) == "FAILED"
        last = await resumed(machine)
        assert last is not None
        assert machine.state(id) == "ACTIVE"
        assert machine.serves() == ["k1"]
        assert machine.starts.configurations[-1]["engine"] == {"max_loras": 4}


async def test_update_that_was_past_its_commit_is_served(machine: Machine) -> None:
    id = await machine.active(1)
    machine.starts.started[0].live.admit({"key": "k1"})
    work = await machine.deployments.update(id, Revision(machine.group(2)))
    await until(lambda: machine.serves() == ["k2"])
    engines = machine.starts.started
    await machine.again()
    assert [engine_of(one).closed for one in engines] == [True, True]
    assert status(machine, work.id) == "SUCCEEDED"
    await resumed(machine)
    assert machine.serves() == ["k2"]
