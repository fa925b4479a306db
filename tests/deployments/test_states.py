"""A deployment's life: created, stopped, started, deleted; what is refused, and what is told."""

from __future__ import annotations

import asyncio

import pytest

from stacked.deployment.deployments import Revision
from stacked.errors import (
    ConfigInvalid,
    EngineStartFailed,
    NotReady,
    RecordAbsent,
    RecordConflict,
    RecordStale,
    UpdateInProgress,
)
from stacked.registry import GroupState
from tests.deployments.machine import Machine
from tests.waiting import until_async as until

ENVIRONMENT = {"environmentConfigurationType": "DEFAULT"}


async def test_created_deployment_serves_when_its_engine_is_there(machine: Machine) -> None:
    machine.starts.gate = asyncio.Event()
    record, work = await machine.create(machine.group(1, 2))
    assert record.state.value == machine.state(record.id) == "CREATING"
    await until(lambda: "Importing vLLM" in machine.logs(work))
    assert 0 < machine.registry.work_requests.get(work.id).percent < 100
    with pytest.raises(NotReady, match="Importing vLLM"):
        machine.deployments.check_served(record.id)
    machine.starts.gate.set()
    assert await machine.end(work) == "SUCCEEDED"
    assert machine.state(record.id) == "ACTIVE"
    assert machine.serves() == ["k1", "k2"]
    machine.deployments.check_served(record.id)
    fared = machine.registry.deployments.list_members(record.id).items
    assert {one.key for one in fared} == {"base", "k1", "k2"}
    assert {one.state.value for one in fared} == {"SUCCESS"}


async def test_requests_wait_from_the_commit_to_the_moment_it_is_served(machine: Machine) -> None:
    machine.starts.last = asyncio.Event()
    record, work = await machine.create(machine.group(1))
    await until(lambda: machine.state(record.id) == "ACTIVE")
    asking = asyncio.create_task(machine.slot.arrived())
    await asyncio.sleep(0)
    assert (machine.slot.active, asking.done()) == (None, False)
    machine.starts.last.set()
    await asking
    assert machine.slot.active is not None
    assert await machine.end(work) == "SUCCEEDED"


async def test_engine_options_are_the_environments_over_the_servers(machine: Machine) -> None:
    variables = {"PARAMS": "--max-model-len 99", "PORT": "8080"}
    environment = {**ENVIRONMENT, "environmentVariables": variables}
    record, work = await machine.create(machine.group(1), environment=environment)
    assert await machine.end(work) == "SUCCEEDED"
    kept = machine.registry.deployments.get(record.id).configuration
    assert kept["engine"] == {"max_loras": 4, "max_model_len": 99}
    assert "accepted and ignored, as this server decides them: PORT" in machine.logs(work)


async def test_deployment_that_cannot_start_is_failed_and_says_why(machine: Machine) -> None:
    machine.starts.fails = [EngineStartFailed("no memory")]
    record, work = await machine.create(machine.group(1))
    assert await machine.end(work) == "FAILED"
    assert (machine.state(record.id), machine.reason(record.id)) == ("FAILED", "no memory")
    assert machine.errors(work) == ["EngineStartFailed"]
    fared = machine.registry.deployments.list_members(record.id).items
    assert {(one.state.value, one.reason) for one in fared} == {("FAILED", "no memory")}
    with pytest.raises(RecordAbsent):
        machine.deployments.check_served(record.id)
    assert await machine.end(await machine.deployments.activate(record.id)) == "SUCCEEDED"
    assert machine.serves() == ["k1"]


async def test_second_deployment_is_refused_while_one_is_active_or_starts(
    machine: Machine,
) -> None:
    machine.starts.gate = asyncio.Event()
    first, work = await machine.create(machine.group(1))
    with pytest.raises(RecordConflict, match=first.id):
        await machine.create(machine.group(2))
    machine.starts.gate.set()
    await machine.end(work)
    with pytest.raises(RecordConflict, match="one at a time"):
        await machine.create(machine.group(2))
    assert len(machine.registry.deployments.list().items) == 1


async def test_what_cannot_be_deployed_is_refused_before_anything_is_recorded(
    machine: Machine,
) -> None:
    idle = machine.group(1)
    machine.registry.groups.set_state(idle, GroupState.INACTIVE)
    with pytest.raises(RecordConflict, match="INACTIVE"):
        await machine.create(idle)
    with pytest.raises(RecordAbsent):
        await machine.create("ocid1.none")
    variables = {"PARAMS": "--served-model-name other"}
    with pytest.raises(ConfigInvalid, match="'other'"):
        await machine.create(machine.group(1), environment={"environmentVariables": variables})
    assert machine.registry.deployments.list().items == ()
    assert machine.registry.work_requests.list().items == ()


async def test_canceled_creation_leaves_nothing_running(machine: Machine) -> None:
    machine.starts.gate = asyncio.Event()
    record, work = await machine.create(machine.group(1))
    await until(lambda: "Importing" in machine.logs(work))
    await machine.deployments.cancel(work.id)
    assert await machine.end(work) == "CANCELED"
    assert (machine.state(record.id), machine.reason(record.id)) == ("FAILED", "it was canceled")
    assert machine.starts.started == []
    assert await machine.end(await machine.deployments.delete(record.id)) == "SUCCEEDED"
    assert machine.state(record.id) == "DELETED"


async def test_deactivated_deployment_lets_requests_finish_and_comes_back(
    machine: Machine,
) -> None:
    id = await machine.active(1)
    old = machine.starts.started[0]
    lease = old.live.admit({"key": "k1"}).lease
    work = await machine.deployments.deactivate(id)
    await until(lambda: machine.slot.active is None)
    assert not machine.closed(0)
    with pytest.raises(RecordConflict, match="is stopped"):
        await machine.deployments.cancel(work.id)
    lease.release()
    assert await machine.end(work) == "SUCCEEDED"
    assert machine.closed(0)
    assert machine.state(id) == "INACTIVE"
    with pytest.raises(RecordAbsent):
        machine.deployments.check_served(id)
    assert await machine.end(await machine.deployments.activate(id)) == "SUCCEEDED"
    assert machine.state(id) == "ACTIVE"
    assert machine.registry.deployments.get(id).generation == 2
    assert machine.serves() == ["k1"]


async def test_request_that_outlasts_the_drain_time_is_ended(machine: Machine) -> None:
    id = await machine.active(1)
    asked: list[str] = []

    def end() -> None:
        asked.append("base")
        admission.lease.release()

    admission = machine.starts.started[0].live.admit({}, end)
    work = await machine.deployments.deactivate(id)
    assert await machine.end(work) == "SUCCEEDED"
    assert asked == ["base"]
    assert "1 requests outlasted" in machine.logs(work)


@pytest.mark.parametrize("wish", ["cancel", "fail"])
async def test_activation_that_does_not_succeed_leaves_it_inactive(
    machine: Machine, wish: str
) -> None:
    id = await machine.active(1)
    await machine.end(await machine.deployments.deactivate(id))
    machine.starts.gate = asyncio.Event()
    machine.starts.fails = [EngineStartFailed("no memory")]
    work = await machine.deployments.activate(id)
    assert machine.state(id) == "UPDATING"
    if wish == "cancel":
        await machine.deployments.cancel(work.id)
    machine.starts.gate.set()
    assert await machine.end(work) == {"cancel": "CANCELED", "fail": "FAILED"}[wish]
    assert machine.state(id) == "INACTIVE"
    machine.starts.fails = []
    assert await machine.end(await machine.deployments.activate(id)) == "SUCCEEDED"


async def test_change_of_an_inactive_deployment_is_served_with_its_activation(
    machine: Machine,
) -> None:
    id = await machine.active(1)
    await machine.end(await machine.deployments.deactivate(id))
    variables = {"PARAMS": "--max-model-len 7"}
    revision = Revision(machine.group(2), {**ENVIRONMENT, "environmentVariables": variables})
    work = await machine.deployments.update(id, revision)
    assert machine.registry.work_requests.get(work.id).status.value == "SUCCEEDED"
    assert machine.state(id) == "INACTIVE"
    assert machine.registry.deployments.get(id).group_id == revision.group_id
    await machine.end(await machine.deployments.activate(id))
    assert machine.serves() == ["k2"]
    assert machine.starts.configurations[-1]["engine"] == {"max_loras": 4, "max_model_len": 7}


@pytest.mark.parametrize("active", [True, False])
async def test_deleted_deployment_is_a_record_alone(machine: Machine, active: bool) -> None:
    id = await machine.active(1)
    if not active:
        await machine.end(await machine.deployments.deactivate(id))
    assert await machine.end(await machine.deployments.delete(id)) == "SUCCEEDED"
    assert machine.state(id) == "DELETED"
    assert machine.closed(0)
    assert machine.serves() == []
    await machine.active(2)


async def test_wrong_states_are_conflicts(machine: Machine) -> None:
    do = machine.deployments
    id = await machine.active(1)
    with pytest.raises(RecordConflict, match="is ACTIVE"):
        await do.activate(id)
    await machine.end(await do.deactivate(id))
    with pytest.raises(RecordConflict, match="is INACTIVE"):
        await do.deactivate(id)
    await machine.end(await do.delete(id))
    group = machine.group(2)
    for refused in (
        do.activate(id),
        do.deactivate(id),
        do.delete(id),
        do.update(id, Revision(group)),
        do.update(id, Revision(described={"display_name": "other"})),
    ):
        with pytest.raises(RecordAbsent, match="DELETED"):
            await refused


async def test_names_are_changed_without_the_engine(machine: Machine) -> None:
    id = await machine.active(1)
    described = Revision(described={"display_name": "other", "configuration": {"logs": {"a": 1}}})
    work = await machine.deployments.update(id, described)
    assert machine.registry.work_requests.get(work.id).status.value == "SUCCEEDED"
    found = machine.registry.deployments.get(id)
    assert (found.display_name, found.configuration["logs"]) == ("other", {"a": 1})
    assert (found.state.value, found.generation) == ("ACTIVE", 1)
    assert found.configuration["engine"] == {"max_loras": 4}


async def test_what_was_read_must_be_what_is_there(machine: Machine) -> None:
    id = await machine.active(1)
    read = machine.registry.deployments.get(id)
    await machine.deployments.update(id, Revision(described={"display_name": "other"}))
    for stale in (
        machine.deployments.deactivate(id, read),
        machine.deployments.delete(id, read),
        machine.deployments.update(id, Revision(machine.group(2)), read),
        machine.deployments.update(id, Revision(machine.group(2), live=True), read),
    ):
        with pytest.raises(RecordStale):
            await stale
    assert machine.state(id) == "ACTIVE"
    assert machine.serves() == ["k1"]


async def test_one_change_at_a_time(machine: Machine) -> None:
    id = await machine.active(1)
    machine.starts.gate = asyncio.Event()
    work = await machine.deployments.update(id, Revision(machine.group(2)))
    for second in (
        machine.deployments.update(id, Revision(machine.group(3), live=True)),
        machine.deployments.deactivate(id),
        machine.deployments.delete(id),
        machine.deployments.activate(id),
    ):
        with pytest.raises(UpdateInProgress):
            await second
    machine.starts.gate.set()
    assert await machine.end(work) == "SUCCEEDED"


async def test_only_work_that_is_under_way_can_be_canceled(machine: Machine) -> None:
    _, work = await machine.create(machine.group(1))
    await machine.end(work)
    with pytest.raises(RecordConflict, match="SUCCEEDED"):
        await machine.deployments.cancel(work.id)
    with pytest.raises(RecordAbsent):
        await machine.deployments.cancel("ocid1.none")
