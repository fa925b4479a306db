"""LIVE updates one after another while processes are killed and updates are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest

from stacked.core import Digest
from stacked.errors import StackedError
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.loader import Loader
from stacked.models import pool
from stacked.models.engine import ModelHandle, ModelsEngine
from tests.models.making import pids_of, running
from tests.models.measure import Clients, Notes, made, member
from tests.waiting import until_async


def held(engine: ModelsEngine) -> set[frozenset[int]]:
    """The models of each process."""
    pools = engine._pools.values()
    return {frozenset(worker.loaded) for pool in pools for worker in pool.workers}


@pytest.mark.long  # as a command: pytest -m long tests/models/test_storm.py
@pytest.mark.parametrize("runtime", ["onnx", "score"])
@pytest.mark.parametrize("processes", [1, 2])
async def test_the_old_or_the_new_group_is_whole_after_every_fault(
    tmp_path: Path, runtime: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PAUSES", (0.01, 0.1))  # many ends in a row, each of them wanted
    chance = random.Random(processes)
    contents = made(tmp_path, runtime, range(1, 41))
    members = [member(at, each) for at, each in enumerate(contents.values())]
    async with running(processes=processes) as (engine, given_up):
        staged: dict[Digest, ModelHandle] = {}
        first = tuple(members[:10])
        assert not await Loader(engine).stage([m.content for m in first], staged, lambda _: None)
        live = Live(engine, Routing.of(None, first, staged), drain_seconds=5)
        clients = Clients(engine, live, {each.digest: by for by, each in contents.items()})
        traffic = asyncio.create_task(clients.run(3))
        for _ in range(25):
            before, wanted = live.routing.members, tuple(chance.sample(members, 10))
            update = asyncio.create_task(live.update(None, wanted, Notes()))
            await asyncio.sleep(chance.random() * 0.15)  # any phase of it
            fault = chance.choice(["kill", "cancel", "none"])
            if fault == "kill" and pids_of(engine):
                with contextlib.suppress(ProcessLookupError):  # one that has ended by itself
                    os.kill(chance.choice(pids_of(engine)), signal.SIGKILL)
            elif fault == "cancel" and live.routing.members == before:
                update.cancel()  # after its switch, an update is over but for freeing memory
            with contextlib.suppress(StackedError, asyncio.CancelledError):
                await update
            assert live.routing.members in (before, wanted)
            handles = live.routing.handles.values()
            await until_async(lambda: all(map(engine.ready, handles)))  # noqa: B023
            numbers = {handle.number for handle in handles}
            # Nothing else is left in any process, however the update ended.
            await until_async(lambda: held(engine) == {frozenset(numbers)})  # noqa: B023
        clients.stop()
        await traffic
        assert (clients.wrong, given_up) == (0, [])
        assert clients.seconds
        assert set(clients.failed) <= {"EngineDead", "NotReady"}
