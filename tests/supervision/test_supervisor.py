"""What is done when an engine dies: it comes back with what it served, or without its culprit.

Engines are doubles; records, deployments and leases are real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from stacked.config import ServerConfig, SupervisionConfig
from stacked.core import Digest
from stacked.deployment.deployments import Revision
from stacked.deployment.runtime import RuntimeUpdates
from stacked.engine.processes import Ended
from stacked.errors import (
    EngineDead,
    EngineStartFailed,
    KeyUnknown,
    ModelQuarantined,
    NotReady,
    RegistryUnusable,
)
from stacked.registry import DeploymentState, MemberState
from stacked.serving.vllm import VllmServing
from stacked.steps import Silent
from stacked.supervision import supervisor
from stacked.supervision.supervisor import Supervisor
from tests.deployments.machine import Machine, YieldingEngine, engine_of, model_id
from tests.groups.test_routing import adapter, member
from tests.waiting import until_async as until

RULES = SupervisionConfig(backoff=timedelta(0), hang=timedelta(seconds=5), deaths=4)


class Watched(Machine):
    """A machine with a supervisor that looks all the time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.given_up: list[str] = []
        self.supervise(RULES)

    def supervise(self, rules: SupervisionConfig) -> None:
        self.supervisor = Supervisor(
            self.slot, self.deployments, self.ledger, rules, Silent(), self.given_up.append
        )
        self.supervisor.begin()

    async def close(self) -> None:
        await self.supervisor.close()
        await super().close()

    @property
    def serving(self) -> VllmServing:
        assert self.slot.active is not None, self.slot.reason
        return cast(VllmServing, self.slot.active.serving)

    @property
    def engine(self) -> YieldingEngine:
        return engine_of(self.serving)

    async def die(self, *keys: str) -> list[Exception]:
        """Have the engine die while these have a request each; what ended them, once it is back."""
        ends: list[Exception] = []
        leases = [self.serving.live.admit({"key": key}, ends.append).lease for key in keys]
        dead = self.engine
        dead.dead = True
        await until(lambda: dead.closed)
        for lease in leases:
            lease.release()
        await until(lambda: self.slot.active is not None or self.given_up)
        return ends

    async def written(self) -> None:
        """Return when everything that was to be written is."""
        await self.ledger.do(lambda: None)

    def runtime(self) -> RuntimeUpdates:
        nothing = cast("Any", None)

        def lifted() -> None:
            assert self.slot.active is not None
            whys = {m.model_id: why for m, why in self.serving.live.quarantined.items()}
            self.ledger.note(self.ledger.served, self.slot.active.deployment_id, whys)

        return RuntimeUpdates(self.serving, _Pinned(), nothing, ServerConfig(), lifted)


class _Pinned:
    """A store that has what is asked for."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.005)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Watched]:
    made = Watched(tmp_path)
    try:
        yield made
    finally:
        await made.close()


async def test_requests_are_ended_and_the_same_group_comes_back(machine: Watched) -> None:
    id = await machine.active(1, 2)
    live = machine.serving.live
    await live.add(member("lone", 3))
    await live.remove("k2")
    generation = live.routing.generation
    (end,) = await machine.die("k1")
    assert isinstance(end, EngineDead)
    assert machine.serves() == ["k1", "lone"]
    live = machine.serving.live
    assert live.routing.generation == generation
    assert {one.key for one in live.removed} == {"k2"}
    assert len(machine.starts.started) == 2
    assert engine_of(machine.starts.started[0]).closed
    await machine.written()
    assert (machine.state(id), machine.reason(id)) == ("ACTIVE", "")
    await live.add(member("k2", 2))  # as a person asks; see `RuntimeUpdates.load_known`
    assert machine.serves() == ["k1", "lone", "k2"]


async def test_it_is_said_why_nothing_answers_and_for_how_long(machine: Watched) -> None:
    id = await machine.active(1)
    machine.starts.gate = asyncio.Event()
    machine.engine.dead = True
    await until(lambda: machine.slot.back_at is not None)
    await until(lambda: "starts again: " in machine.slot.reason)
    with pytest.raises(NotReady) as refused:
        machine.slot.get()
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 30
    machine.deployments.check_served(id)
    await machine.written()
    assert (machine.state(id), "SIGKILL" in machine.reason(id)) == ("FAILED", True)
    machine.starts.gate.set()
    await until(lambda: machine.slot.active is not None)
    machine.slot.get()


async def test_starts_that_fail_are_repeated_and_then_given_up(machine: Watched) -> None:
    id = await machine.active(1)
    machine.starts.fails = [EngineStartFailed("no memory"), None]
    await machine.die()
    assert machine.serves() == ["k1"]
    machine.starts.fails = [EngineStartFailed("no memory")] * 3
    await machine.die()
    (reason,) = machine.given_up
    assert "4 times in a row" in reason
    assert "no memory" in reason
    await machine.written()
    assert (machine.state(id), machine.reason(id)) == ("FAILED", reason)


async def test_adapter_that_engines_die_with_is_quarantined_also_after_a_restart(
    machine: Watched,
) -> None:
    id = await machine.active(1, 2)
    before = machine.serving.live.routing.generation
    await machine.die("k1")
    assert machine.serves() == ["k1", "k2"]
    await machine.die("k1")
    assert machine.serves() == ["k2"]
    assert machine.serving.live.routing.generation == before
    for name in ("k1", model_id(1)):
        with pytest.raises(ModelQuarantined, match="SIGKILL"):
            machine.serving.live.admit({"key": name})
    with pytest.raises(KeyUnknown):
        machine.serving.live.admit({"key": "k9"})
    await machine.die("k2")  # which changes nothing for the other
    assert machine.serves() == ["k2"]
    await machine.written()
    states = {one.key: one.state for one in machine.registry.deployments.list_members(id).items}
    failed, good = MemberState.FAILED, MemberState.SUCCESS
    assert states == {"base": good, "k1": failed, "k2": good}
    assert machine.state(id) == "NEEDS_ATTENTION"
    await machine.supervisor.close()
    await machine.again()
    last = machine.ledger.last_active()
    assert last is not None
    await machine.deployments.resume(last)
    await machine.deployments.wait()
    assert (machine.serves(), machine.state(id)) == (["k2"], "NEEDS_ATTENTION")
    with pytest.raises(ModelQuarantined):
        machine.serving.live.admit({"key": "k1"})


async def test_adapter_that_starts_end_with_is_quarantined_and_the_rest_served(
    machine: Watched,
) -> None:
    id = await machine.active(1, 2, 3)
    lost = machine.serving
    one, two = (adapter(number).digest for number in (1, 2))
    machine.starts.fails = [fatal(one, two), fatal(two)]
    await machine.die("k3")
    assert machine.serves() == ["k1", "k3"]
    assert lost.suspects == {two}  # which the last start had loaded alone
    with pytest.raises(ModelQuarantined, match="while it loaded"):
        machine.serving.live.admit({"key": "k2"})
    assert not machine.given_up
    await machine.written()
    assert machine.state(id) == "NEEDS_ATTENTION"


def fatal(*loading: Digest) -> EngineStartFailed:
    error = EngineStartFailed("while it loaded these: the engine has died")
    error.suspects = frozenset(loading)
    return error


async def test_quarantine_ends_when_a_person_loads_it_or_deploys_a_group(machine: Watched) -> None:
    id = await machine.active(1, 2)
    for _ in range(2):
        await machine.die("k1")
    (out,) = machine.serving.live.quarantined
    await machine.runtime()._serve(out)
    assert machine.serves() == ["k2", "k1"]
    await machine.written()
    assert machine.state(id) == "ACTIVE"
    await machine.die("k1")  # what was before the quarantine does not count any more
    assert machine.serves() == ["k2", "k1"]
    await machine.die("k1")
    assert machine.serves() == ["k2"]
    work = await machine.deployments.update(id, Revision(machine.group(1, 2, 3), live=True))
    assert await machine.end(work) == "SUCCEEDED"
    assert machine.serves() == ["k1", "k2", "k3"]
    assert machine.state(id) == "ACTIVE"


async def test_full_disk_does_not_keep_a_group_from_coming_back(
    machine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.active(1)

    def full(*given: Any, **named: Any) -> Any:
        raise RegistryUnusable("database or disk is full; free some space, and try again")

    monkeypatch.setattr(machine.registry.deployments, "set_state", full)
    monkeypatch.setattr(machine.registry.deployments, "get", full)
    await machine.die("k1")
    assert machine.serves() == ["k1"]


async def test_deployment_that_is_deleted_meanwhile_does_not_come_back(machine: Watched) -> None:
    id = await machine.active(1)
    await machine.supervisor.close()
    machine.supervise(SupervisionConfig(backoff=timedelta(seconds=1), hang=timedelta(seconds=5)))
    machine.engine.dead = True
    await until(lambda: machine.slot.lost is not None)
    await until(lambda: machine.state(id) == "FAILED")
    await machine.end(await machine.deployments.delete(id))
    assert machine.slot.lost is None
    other = await machine.active(2)
    await asyncio.sleep(0)
    assert (machine.serves(), machine.state(other)) == (["k2"], "ACTIVE")


async def test_silent_engine_is_ended_and_comes_back(
    machine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "Pulse", lambda step, hang: _Impatient(step))
    await machine.active(1)
    silent = machine.engine
    silent.steps.clear()
    lease = machine.serving.live.admit({"key": "k1"}).lease
    await until(lambda: silent.closed)
    lease.release()
    await until(lambda: machine.slot.active is not None)
    assert silent.dead
    assert machine.serves() == ["k1"]


class _Impatient:
    """A pulse for which the first look is the last."""

    def __init__(self, step: Callable[[], Any]) -> None: ...

    def hangs(self, *, working: bool) -> bool:
        return working

    def close(self) -> None: ...


async def test_update_that_an_engine_dies_in_fails_and_the_old_group_comes_back(
    machine: Watched,
) -> None:
    id = await machine.active(1)
    engine = machine.engine
    engine.gate = asyncio.Event()
    work = await machine.deployments.update(id, Revision(machine.group(1, 2), live=True))
    await asyncio.sleep(0)
    engine.fails = {"stage": EngineDead("the engine has died")}
    engine.dead = True
    engine.gate.set()
    assert await machine.end(work) == "FAILED"
    await until(lambda: engine.closed and machine.slot.active is not None)
    assert machine.serves() == ["k1"]
    await machine.written()
    assert machine.state(id) == DeploymentState.ACTIVE.value


@pytest.mark.parametrize(
    ("ended", "hangs", "cause"),
    [
        (Ended(1), False, "exit"),
        (Ended(None), False, "exit"),
        (Ended(-9), False, "signal"),
        (Ended(-9, oom=True), False, "oom"),
        (Ended(1, oom=True), False, "exit"),
        (Ended(-9), True, "hang"),
    ],
)
def test_causes(ended: Ended, hangs: bool, cause: str) -> None:
    assert supervisor._cause(ended, hangs).value == cause


async def test_what_an_engine_that_lives_on_gave_up_is_written_down(machine: Watched) -> None:
    id = await machine.active(1, 2)
    live = machine.serving.live
    live.withhold(live.routing.handles[adapter(1).digest], "its process ended 3 times")
    await until(lambda: machine.state(id) == "NEEDS_ATTENTION")
    assert "its process ended 3 times" in machine.reason(id)
    assert machine.serves() == ["k2"]
    await live.add(member("k1", 1))  # as a person asks
    await until(lambda: machine.state(id) == "ACTIVE")
    assert len(machine.starts.started) == 1
