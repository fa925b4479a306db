"""Updates of an active deployment: LIVE and by another engine, failed ones and canceled ones."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from stacked.deployment.deployments import Revision
from stacked.errors import (
    ConfigInvalid,
    EngineLoadFailed,
    EngineStartFailed,
    GroupInvalid,
    NotReady,
    RecordConflict,
)
from stacked.steps import Phase, Start
from tests.deployments.machine import BASE, Machine, engine_of
from tests.groups.test_routing import adapter
from tests.waiting import until_async as until


async def test_live_update_keeps_the_engine(machine: Machine) -> None:
    id = await machine.active(1)
    group = machine.group(2, 3)
    described = {"display_name": "renamed"}
    work = await machine.deployments.update(
        id,
        Revision(group, live=True, described=described),  # type: ignore[arg-type]
    )
    assert await machine.end(work) == "SUCCEEDED"
    found = machine.registry.deployments.get(id)
    assert (found.state.value, found.group_id, found.generation) == ("ACTIVE", group, 2)
    assert found.display_name == "renamed"
    assert machine.serves() == ["k2", "k3"]
    assert len(machine.starts.started) == 1
    fared = machine.registry.deployments.list_members(id).items
    assert {one.key for one in fared} == {"base", "k2", "k3"}


async def test_live_update_to_an_unknown_card_is_refused_before_anything_changes(
    machine: Machine,
) -> None:
    id = await machine.active(1)

    def pinned(card: int) -> Revision:
        item = {"key": "stacked.gpus", "value": f'{{"k2": [{card}]}}'}
        return Revision(machine.group(2, custom_metadata=(item,)), live=True)

    with pytest.raises(GroupInvalid, match="'k2' is pinned to card 1, and this server has 1"):
        await machine.deployments.update(id, pinned(1))
    assert machine.serves() == ["k1"]
    assert machine.registry.deployments.get(id).state.value == "ACTIVE"
    assert await machine.end(await machine.deployments.update(id, pinned(0))) == "SUCCEEDED"
    assert machine.serves() == ["k2"]


PARAMS = {"environmentVariables": {"PARAMS": "--served-model-name base"}}


async def test_live_update_may_call_the_base_by_another_key(machine: Machine) -> None:
    """The group says how; `--served-model-name` is what it was called when the engine started."""
    record, work = await machine.create(machine.group(1), environment=PARAMS)
    assert await machine.end(work) == "SUCCEEDED"
    group = machine.group(1, 2, base_key="renamed")
    work = await machine.deployments.update(record.id, Revision(group, live=True))
    assert await machine.end(work) == "SUCCEEDED"
    assert base_keys(machine, record.id) == ("renamed", ["renamed"])
    assert len(machine.starts.started) == 1
    await machine.end(await machine.deployments.deactivate(record.id))
    await machine.end(await machine.deployments.activate(record.id))
    assert base_keys(machine, record.id) == ("renamed", ["renamed"])
    # A group that gives the base no key leaves it to the deployment, LIVE as after a start.
    group = machine.group(1, base_key=None)
    work = await machine.deployments.update(record.id, Revision(group, live=True))
    assert await machine.end(work) == "SUCCEEDED"
    assert base_keys(machine, record.id)[0] == "base"


async def test_an_environment_that_names_the_base_otherwise_is_refused(machine: Machine) -> None:
    record, work = await machine.create(machine.group(1, base_key="b"))
    await machine.end(work)
    other = {"environmentVariables": {"PARAMS": "--served-model-name other"}}
    with pytest.raises(ConfigInvalid, match=r"'other'.*'b'"):
        await machine.deployments.update(record.id, Revision(environment=other))


def base_keys(machine: Machine, id: str) -> tuple[str, list[str | None]]:
    """What the base is called by requests, and by the rows of its model states."""
    active = machine.slot.active
    assert active is not None
    rows = machine.registry.deployments.list_members(id).items
    label = active.serving.live.routing.resolve(None).label
    return label, [one.key for one in rows if one.model_id == BASE]


async def test_failed_live_update_tells_each_model_and_the_old_group_serves(
    machine: Machine,
) -> None:
    id = await machine.active(1)
    engine_of(machine.starts.started[0]).fails["adopt"] = EngineLoadFailed("broken")
    work = await machine.deployments.update(id, Revision(machine.group(2), live=True))
    assert await machine.end(work) == "FAILED"
    assert machine.errors(work) == ["EngineLoadFailed", "UpdateFailed"]
    assert machine.state(id) == "ACTIVE"
    assert "broken" in machine.reason(id)
    assert machine.serves() == ["k1"]


async def test_live_update_can_be_canceled_before_its_switch(machine: Machine) -> None:
    id = await machine.active(1)
    engine = engine_of(machine.starts.started[0])
    held = dict(engine.held)
    engine.gate = asyncio.Event()
    work = await machine.deployments.update(id, Revision(machine.group(2), live=True))
    await until(lambda: "staging" in machine.logs(work))
    await machine.deployments.cancel(work.id)
    assert await machine.end(work) == "CANCELED"
    engine.gate.set()
    assert (engine.held, engine.staged) == (held, {})
    assert machine.state(id) == "ACTIVE"
    assert machine.serves() == ["k1"]
    again = await machine.deployments.update(id, Revision(machine.group(2), live=True))
    assert await machine.end(again) == "SUCCEEDED"


async def test_live_update_that_has_switched_cannot_be_canceled(machine: Machine) -> None:
    id = await machine.active(1)
    lease = machine.starts.started[0].live.admit({"key": "k1"}).lease
    work = await machine.deployments.update(id, Revision(machine.group(2), live=True))
    await until(lambda: machine.serves() == ["k2"])
    told = machine.registry.deployments.list_members(id).items
    assert {one.key: one.state.value for one in told} == {"base": "SUCCESS", "k2": "SUCCESS"}
    with pytest.raises(RecordConflict, match="the new group serves already"):
        await machine.deployments.cancel(work.id)
    lease.release()
    assert await machine.end(work) == "SUCCEEDED"


async def test_cancel_that_meets_the_commit_is_refused_and_the_commit_stands(
    machine: Machine,
) -> None:
    """However the two race, records and routing say the same."""
    id = await machine.active(1)
    outcomes: set[str] = set()
    for steps in range(60):
        group = machine.group(2 + steps % 3)
        work = await machine.deployments.update(id, Revision(group, live=True))
        for _ in range(steps):
            await asyncio.sleep(0)
        with contextlib.suppress(RecordConflict):
            await machine.deployments.cancel(work.id)
        status = await machine.end(work)
        outcomes.add(status)
        found = machine.registry.deployments.get(id)
        assert found.state.value == "ACTIVE"
        assert (found.group_id == group) == (status == "SUCCEEDED")
        wanted = [str(m.key) for m in machine.registry.groups.get(str(found.group_id)).members[1:]]
        assert machine.serves() == wanted
        active = machine.slot.active
        assert active is not None
        assert active.serving.live.routing.generation == found.generation
    assert outcomes == {"CANCELED", "SUCCEEDED"}


async def test_another_engine_starts_beside_the_one_that_serves(machine: Machine) -> None:
    id = await machine.active(1)
    old = machine.starts.started[0]
    lease = old.live.admit({"key": "k1"}).lease
    machine.starts.gate = asyncio.Event()
    group = machine.group(2)
    work = await machine.deployments.update(id, Revision(group))
    await until(lambda: "Importing" in machine.logs(work))
    assert machine.state(id) == "UPDATING"
    assert machine.serves() == ["k1"]
    both = {"sha256:b", adapter(1).digest, adapter(2).digest}
    assert machine.slot.in_use >= both
    machine.starts.gate.set()
    await until(lambda: machine.serves() == ["k2"])
    assert not machine.closed(0)  # a request of it runs
    assert machine.slot.in_use >= both
    with pytest.raises(RecordConflict, match="serves already"):
        await machine.deployments.cancel(work.id)
    lease.release()
    assert await machine.end(work) == "SUCCEEDED"
    assert machine.closed(0)
    assert machine.slot.in_use == both - {adapter(1).digest}
    assert "beside the old one" in machine.logs(work)
    found = machine.registry.deployments.get(id)
    assert (found.state.value, found.group_id, found.generation) == ("ACTIVE", group, 2)


async def test_where_there_is_no_room_the_old_engine_goes_first(machine: Machine) -> None:
    id = await machine.active(1)
    machine.starts.enough = False
    machine.starts.gate = asyncio.Event()
    work = await machine.deployments.update(id, Revision(machine.group(2)))
    await until(lambda: "Importing" in machine.logs(work))
    assert machine.closed(0)
    with pytest.raises(NotReady, match="starting"):
        machine.deployments.check_served(id)
    machine.starts.gate.set()
    assert await machine.end(work) == "SUCCEEDED"
    assert "after the old one" in machine.logs(work)
    assert machine.serves() == ["k2"]


# What the double of a start reports, the same for both.
_STARTED = ["IMPORT", "CREATE"]


@pytest.mark.parametrize(
    ("beside", "steps"),
    [
        (True, ["READ", *_STARTED, "RETIRE", "RETIRE"]),
        (False, ["READ", "MAKE_ROOM", "MAKE_ROOM", *_STARTED]),
    ],
)
async def test_another_engine_is_reported_step_by_step(
    machine: Machine, beside: bool, steps: list[str]
) -> None:
    id = await machine.active(1)
    machine.starts.enough = beside
    machine.starts.gate = asyncio.Event()
    work = await machine.deployments.update(id, Revision(machine.group(2)))
    await until(lambda: "Importing" in machine.logs(work))
    requests = machine.registry.work_requests
    assert requests.get(work.id).percent == Start.IMPORT.percent(0)
    machine.starts.gate.set()
    assert await machine.end(work) == "SUCCEEDED"
    assert [log.step for log in requests.list_logs(work.id).items if log.step] == steps
    assert requests.get(work.id).percent == 100


async def test_a_live_update_is_reported_phase_by_phase(machine: Machine) -> None:
    id = await machine.active(1)
    group = machine.group(2)
    work = await machine.deployments.update(id, Revision(group, live=True))
    assert await machine.end(work) == "SUCCEEDED"
    logs = machine.registry.work_requests.list_logs(work.id).items
    assert list(dict.fromkeys(log.step for log in logs if log.step)) == [*Phase.__members__]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("wish", ["cancel", "fail"])
async def test_what_served_before_serves_when_the_new_engine_does_not_come(
    machine: Machine, beside: bool, wish: str
) -> None:
    id = await machine.active(1)
    before = machine.registry.deployments.get(id)
    machine.starts.enough = beside
    machine.starts.gate = asyncio.Event()
    machine.starts.fails = [EngineStartFailed("no memory")] if wish == "fail" else []
    environment = {"environmentVariables": {"PARAMS": "--max-model-len 7"}}
    work = await machine.deployments.update(id, Revision(machine.group(2), environment))
    await until(lambda: "Importing" in machine.logs(work))
    if wish == "cancel":
        await machine.deployments.cancel(work.id)
    machine.starts.gate.set()
    assert await machine.end(work) == {"cancel": "CANCELED", "fail": "FAILED"}[wish]
    found = machine.registry.deployments.get(id)
    assert machine.serves() == ["k1"]
    assert (found.state.value, found.group_id) == ("ACTIVE", before.group_id)
    assert found.configuration == before.configuration
    assert ("no memory" if wish == "fail" else "it was canceled") in found.reason
    machine.deployments.check_served(id)
    active = machine.slot.active
    assert active is not None
    assert active.serving.live.routing.generation == found.generation == 1


async def test_nothing_comes_back(machine: Machine) -> None:
    id = await machine.active(1)
    machine.starts.enough = False
    machine.starts.fails = [EngineStartFailed("no memory"), EngineStartFailed("none at all")]
    work = await machine.deployments.update(id, Revision(machine.group(2)))
    assert await machine.end(work) == "FAILED"
    assert machine.state(id) == "FAILED"
    assert "no memory" in machine.reason(id)
    assert "none at all" in machine.reason(id)
    assert await machine.end(await machine.deployments.activate(id)) == "SUCCEEDED"
    assert machine.serves() == ["k1"]


async def test_environment_is_committed_with_the_engine_that_has_it(machine: Machine) -> None:
    id = await machine.active(1)
    environment = {"environmentVariables": {"PARAMS": "--max-model-len 7"}}
    work = await machine.deployments.update(id, Revision(environment=environment))
    assert await machine.end(work) == "SUCCEEDED"
    kept = machine.registry.deployments.get(id).configuration
    assert kept["environment"] == environment
    assert kept["engine"] == {"max_loras": 4, "max_model_len": 7}
    assert machine.serves() == ["k1"]
    assert len(machine.starts.started) == 2
