"""A disk that is full from some phase of an update on: real records over an engine of doubles.

Until the commit the old group serves on, from the commit on the new one; and once there is space
again the next update works, and nothing is in progress for ever.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event

from stacked.deployment.deployments import Revision
from stacked.errors import StackedError
from stacked.registry import WorkStatus
from stacked.steps import Phase
from tests.deployments.machine import Machine, YieldingEngine, engine_of
from tests.waiting import until_async


class Disk:
    """What the records stand on; `full` refuses every transaction that would write."""

    def __init__(self) -> None:
        self.full = False
        self.refused = 0

    def watch(self, machine: Machine) -> None:
        @event.listens_for(machine.registry._database._store._engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("stacked_begin") == "IMMEDIATE"
            if self.full and writes:
                self.refused += 1
                raise sqlite3.OperationalError("database or disk is full")


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    await machine.close()


@contextlib.contextmanager
def full_at(call: str, engine: YieldingEngine, disk: Disk) -> Iterator[None]:
    """The disk is full from this call of the engine on."""
    real = getattr(engine, call)

    async def first_fill(*args: object) -> object:
        disk.full = True
        return await real(*args)

    setattr(engine, call, first_fill)
    yield
    setattr(engine, call, real)
    disk.full = False


@pytest.mark.parametrize(
    ("phase", "call", "serves"),
    [
        (Phase.STAGE, "stage", "k1"),
        (Phase.VERIFY, "verify", "k1"),
        (Phase.REMOVE, "remove", "k2"),
    ],
)
async def test_full_disk_leaves_one_whole_group_and_nothing_in_progress(
    machine: Machine, phase: Phase, call: str, serves: str
) -> None:
    id = await machine.active(1)
    disk = Disk()
    disk.watch(machine)
    engine = engine_of(machine.starts.started[0])
    with full_at(call, engine, disk):
        with contextlib.suppress(StackedError):
            await machine.deployments.update(id, Revision(machine.group(2), live=True))
        # At most five before the commit is refused too; then its failure, again and again.
        await until_async(lambda: disk.refused >= 7)
        assert machine.serves() == [serves]
    await machine.deployments.wait()
    assert machine.serves() == [serves]
    assert not engine.staged
    assert len(engine.held) == 1
    again = await machine.deployments.update(id, Revision(machine.group(3), live=True))
    assert await machine.end(again) == "SUCCEEDED"
    assert machine.serves() == ["k3"]
    assert machine.state(id) == "ACTIVE"
    open_ones = [
        one.status
        for one in machine.registry.work_requests.list().items
        if one.status not in (WorkStatus.SUCCEEDED, WorkStatus.FAILED)
    ]
    assert open_ones == []
