"""When an engine is silent: only while requests wait, and only by time in which we looked."""

from __future__ import annotations

import asyncio

import pytest

from stacked.errors import EngineDead
from stacked.supervision.pulse import Pulse


class Engine:
    """Makes a step when `steps` is set; the time is what the test says."""

    def __init__(self) -> None:
        self.steps = asyncio.Event()
        self.asked = 0
        self.now = 0.0
        self.pulse = Pulse(self.step, 20.0, lambda: self.now)

    async def step(self) -> None:
        self.asked += 1
        await self.steps.wait()

    async def look(self, seconds: float, *, working: bool = True, every: float = 1.0) -> bool:
        """Whether it hangs after so many seconds."""
        hangs = False
        for _ in range(round(seconds / every)):
            self.now += every
            hangs = self.pulse.hangs(working=working)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return hangs


@pytest.fixture
async def engine() -> Engine:
    return Engine()


async def test_silence_is_a_hang_after_its_time_and_not_before(engine: Engine) -> None:
    assert not await engine.look(21)
    assert await engine.look(1)
    engine.pulse.close()


async def test_engine_that_makes_steps_is_asked_now_and_then(engine: Engine) -> None:
    engine.steps.set()
    assert not await engine.look(200)
    assert 90 <= engine.asked <= 110


async def test_nobody_waits_for_an_idle_engine(engine: Engine) -> None:
    assert not await engine.look(100, working=False)
    assert engine.asked == 0
    assert not await engine.look(15)
    assert not await engine.look(1, working=False)
    assert not await engine.look(15)
    assert await engine.look(10)
    engine.pulse.close()


async def test_time_in_which_this_process_stood_still_is_not_the_engines(engine: Engine) -> None:
    assert not await engine.look(1)
    assert not await engine.look(3600, every=3600)
    assert not await engine.look(14)
    engine.pulse.close()


async def test_an_engine_that_dies_meanwhile_is_no_hang() -> None:
    async def step() -> None:
        raise EngineDead("gone")

    now = [0.0]
    pulse = Pulse(step, 20.0, lambda: now[0])
    for _ in range(100):
        now[0] += 1.0
        assert not pulse.hangs(working=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
