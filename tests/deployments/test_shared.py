"""Records in PostgreSQL: one process serves them, and goes on serving while the server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from stacked.config import StorageConfig
from stacked.deployment.deployments import Revision
from stacked.errors import DataDirInUse, RegistryUnusable
from stacked.registry import postgresql
from stacked.registry.places import database_of
from tests.deployments.machine import Machine
from tests.postgres import PASSWORD, Postgres, running_postgres
from tests.waiting import until_async as until


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def storage(own: Postgres) -> StorageConfig:
    own.run("DROP SCHEMA IF EXISTS stacked_tests CASCADE")
    return StorageConfig(database=SecretStr(own.url()))


@pytest.fixture
async def machine(tmp_path: Path, storage: StorageConfig) -> AsyncIterator[Machine]:
    made = Machine(tmp_path, storage)
    try:
        yield made
    finally:
        await made.close()


async def test_another_process_on_another_machine_finds_what_was_served(
    machine: Machine, tmp_path: Path, storage: StorageConfig
) -> None:
    id = await machine.active(1)
    with pytest.raises(DataDirInUse, match="uses the registry postgresql://127"):
        Machine(tmp_path / "other", storage)
    await machine.close()
    other = Machine(tmp_path / "other", storage)
    try:
        last = other.ledger.last_active()
        assert last is not None
        assert last.id == id
        await other.deployments.resume(last)
        await other.deployments.wait()
        assert other.serves() == ["k1"]
    finally:
        await other.close()


async def test_group_whose_records_are_in_a_database_does_not_begin_anew_in_a_file(
    machine: Machine, tmp_path: Path
) -> None:
    await machine.close()
    assert PASSWORD not in (database_of(machine.ledger.directory) or "")
    with pytest.raises(RegistryUnusable, match="are in postgresql://127"):
        Machine(tmp_path, StorageConfig())


async def test_what_is_served_does_not_need_the_database(
    machine: Machine, own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_RESTART_SECONDS", 0.0)
    id = await machine.active(1)
    group = machine.group(2)
    live = machine.starts.started[0].live
    own.stop()
    try:
        live.admit({"key": "k1"}).lease.release()
        with pytest.raises(RegistryUnusable, match="check that it runs"):
            await machine.deployments.update(id, Revision(group, live=True))
        assert machine.serves() == ["k1"]
        live.admit({"key": "k1"}).lease.release()
    finally:
        own.start()
    work = await machine.deployments.update(id, Revision(group, live=True))
    assert await machine.end(work) == "SUCCEEDED"
    assert machine.serves() == ["k2"]


async def test_update_whose_database_goes_away_is_recorded_when_it_is_back(
    machine: Machine,
    own: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(postgresql, "_RESTART_SECONDS", 0.0)
    id = await machine.active(1)
    machine.starts.gate = asyncio.Event()
    other = {"environmentVariables": {"PARAMS": "--max-model-len 7"}}
    work = await machine.deployments.update(id, Revision(machine.group(2), other))
    await until(lambda: "Importing" in machine.logs(work))
    own.stop()
    machine.starts.gate.set()  # the new engine comes up, and its commit cannot be written
    try:
        await until(lambda: "the records cannot be written, trying again" in caplog.text)
        assert machine.serves() == ["k1"]
    finally:
        own.start()
    ended = await machine.end(work)
    assert machine.serves() == (["k2"] if ended == "SUCCEEDED" else ["k1"])
    assert machine.state(id) == "ACTIVE"
