"""Weights, contents and arms change while clients ask: nobody has two arms within one phase.

The engine is a double, the rest is what serves; tests/api/test_experiments.py has a real one.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial

from stacked.config import ArmConfig, Design, ExperimentConfig, UnitKind
from stacked.core import Member
from stacked.engine.loaded import Loaded
from stacked.groups.routing import Routing
from stacked.live import Live
from tests.groups.test_routing import BASE, adapter, member
from tests.test_live import FakeEngine, Notes, serving

CLIENTS, CHANGES, UNITS = 16, 150, 40


def design(weights: dict[str, int]) -> Design:
    arms = tuple(ArmConfig(key=key, weight=weight) for key, weight in weights.items())
    return Design(experiments=(ExperimentConfig(key="sql", arms=arms),))


async def change(live: Live[Loaded], seed: int) -> None:
    """Updates, arms taken out and back one by one, and quarantined."""
    chance = random.Random(seed)
    for number in range(CHANGES):
        contents = {"a": chance.choice([1, 4]), "b": chance.choice([2, 5]), "c": 3}
        members: list[Member] = [member(key, at) for key, at in contents.items()]
        weights = {key: chance.choice([0, 10, 20, 50]) for key in contents}
        weights["c"] = weights["c"] or 1
        await live.update(BASE, tuple(members), Notes(), design(weights))
        if number % 3 == 0:
            await live.remove("a")
        if number % 7 == 0:
            live.withhold(live.routing.handles[adapter(contents["b"]).digest], "it kills engines")
        if number % 6 == 0:
            await live.add(members[0])


def _given(unit: str, kind: UnitKind) -> str:
    return unit


async def test_a_storm_of_changes_under_16_clients() -> None:
    engine = FakeEngine()
    live = await serving(engine, member("c", 3))
    members, handles = live.routing.members, live.routing.handles
    live.begin(Routing.of(BASE, members, handles, design=design({"c": 1})))
    seen: dict[tuple[str, str], tuple[str, str | None]] = {}
    phases: set[str] = set()
    answers = 0

    async def client(seed: int) -> None:
        nonlocal answers
        chance = random.Random(1000 + seed)
        while not done.is_set():
            unit = f"user-{chance.randrange(UNITS)}"
            route, lease = live.admit({"body": "sql"}, unit=partial(_given, unit))
            exposure, handle = route.exposure, route.handle
            with lease:
                assert exposure is not None
                assert handle is not None
                assert handle.digest == route.digest, "the headers say what answers"
                assert exposure.unit is not None
                got = (exposure.arm, route.digest)
                assert seen.setdefault((exposure.phase, exposure.unit), got) == got
                await asyncio.sleep(0)
                assert engine.held[handle.number] == route.digest, "it is there to the last byte"
            phases.add(exposure.phase)
            answers += 1

    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(client(number))
        await change(live, 7)
        done.set()
    assert len(phases) > 50
    assert answers > CLIENTS * CHANGES
    assert {arm for arm, _ in seen.values()} == {"a", "b", "c"}
