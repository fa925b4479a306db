"""Rounds by themselves beside LIVE updates: the disk stays flat, and nothing that serves is lost.

Engines are doubles; records, stores and rounds are real.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from stacked.api.routes import create_routes
from stacked.config import BaseConfig, Config, GroupConfig, MemberConfig, RetentionConfig
from stacked.deployment.deployments import Revision
from stacked.registry import GROUP, GroupMember, GroupRecord, Model, ModelState, new_id
from stacked.retention import collect
from stacked.service import Service
from tests.retention.ground import TAGS
from tests.store.small import write_adapter, write_base
from tests.test_service import Engines, engines  # noqa: F401  a fixture

VERSIONS = 4
RETENTION = RetentionConfig(
    group_versions=VERSIONS,
    interval=timedelta(hours=1),
    deleted_records=timedelta(0),
    work_requests=timedelta(0),
    low_disk_bytes=1,
)


class Run:
    """A service that goes from update to update, each with an adapter that is new."""

    def __init__(self, service: Service, directory: Path) -> None:
        self.service = service
        self.directory = directory
        self.number = 0

    async def add(self) -> Model:
        """A new adapter, registered."""
        self.number += 1
        source = self.directory / f"a{self.number}"
        write_adapter(source, seed=self.number)
        new = Model(id="", display_name=source.name, tags=TAGS)
        return await asyncio.to_thread(self.service.catalogue.register, new, str(source))

    async def update(self) -> Model:
        """A LIVE update to a group of a new adapter alone."""
        service, model = self.service, await self.add()
        base = service.routing.base
        members = (GroupMember(base.model_id, base.key), GroupMember(model.id, "k"))
        record = GroupRecord(
            id=new_id(GROUP),
            display_name="g",
            base_model_id=base.model_id,
            members=members,
            tags=TAGS,
        )
        group = await asyncio.to_thread(partial(service.registry.groups.create, record, check=True))
        service.catalogue.changed()
        work = await service.deployments.update(
            service.active.deployment_id, Revision(group_id=group.id, live=True)
        )
        await service.deployments.wait()
        assert service.registry.work_requests.get(work.id).status.value == "SUCCEEDED"
        return model

    def stored(self) -> set[str]:
        return {each.digest for each in self.service.catalogue.store.contents()}

    def bytes(self, place: str) -> int:
        files = (self.service.data_dir / place).rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    async def settled(self, most: int) -> None:
        """Until no more than so many adapters are stored, and what was removed is off the disk."""
        until = time.monotonic() + 60
        staging = self.service.data_dir / "store" / "staging"
        while len(self.stored()) > most or any(staging.iterdir()):
            assert time.monotonic() < until, len(self.stored())
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def run(
    tmp_path: Path,
    engines: Engines,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Run]:
    monkeypatch.setattr("stacked.retention.rounds._PAUSE_SECONDS", 0.05)
    source = write_adapter(tmp_path / "first", seed=10**6)
    config = Config(
        base=BaseConfig(model=str(write_base(tmp_path / "base"))),
        group=GroupConfig(members=(MemberConfig(source=str(source), key="k"),)),
        retention=RETENTION,
    )
    config = config.model_copy(
        update={"server": config.server.model_copy(update={"adapter_roots": (str(tmp_path),)})}
    )
    service = Service(config, tmp_path / "data", durable=True)
    await service.start()
    yield Run(service, tmp_path)
    await service.close()


async def updates_leave_the_disk_flat(run: Run, count: int) -> None:
    sizes: list[tuple[int, int]] = []
    for number in range(1, count + 1):
        model = await run.update()
        assert run.service.routing.resolve("k").digest == model.digest
        if number % (count // 4) == 0:
            # The file's own group is of another name: of one line there are VERSIONS.
            await run.settled(VERSIONS + 1)
            sizes.append((run.bytes("store"), run.bytes("deployments")))
            print(f"after {number}: store {sizes[-1][0]} B, records {sizes[-1][1]} B")
    stores, records = zip(*sizes, strict=True)
    assert max(stores) <= min(stores) * 1.1
    assert records[-1] <= records[1] * 1.2


async def test_updates_with_new_adapters_leave_the_disk_flat(run: Run) -> None:
    await updates_leave_the_disk_flat(run, 24)


@pytest.mark.long
async def test_a_thousand_updates_with_new_adapters_leave_the_disk_flat(run: Run) -> None:
    await updates_leave_the_disk_flat(run, 1000)


async def test_a_deleted_model_is_collected_without_waiting_for_the_clock(run: Run) -> None:
    model = await run.add()
    await asyncio.to_thread(run.service.catalogue.delete, model.id)
    await run.settled(1)
    assert model.digest not in run.stored()


async def test_what_is_loaded_by_hand_or_removed_alone_stays(run: Run) -> None:
    loaded = await run.service.runtime.load(
        str(write_adapter(run.directory / "h")), key="h", model_id=None
    )
    assert await run.service.runtime.unload("k")
    await run.service.rounds.run()
    (first,) = {member.content.digest for member in run.service.vllm.live.removed}
    assert run.stored() == {loaded.digest, first}
    assert await run.service.runtime.load_known("k", None)


async def test_whoever_may_change_things_can_ask_for_a_round(run: Run) -> None:
    model = await run.add()
    await asyncio.to_thread(run.service.registry.models.set_state, model.id, ModelState.DELETED)
    transport = httpx.ASGITransport(app=create_routes(run.service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        planned = await client.post("/stacked/collect", params={"dryRun": "true"})
        assert model.digest in run.stored()
        done = await client.post("/stacked/collect")
    assert (planned.status_code, done.status_code) == (200, 200), done.text
    assert planned.json()["dryRun"]
    assert planned.json()["lines"] == done.json()["lines"]
    assert model.digest not in run.stored()


async def test_a_round_that_fails_is_told_and_not_the_last(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await run.add()
    with monkeypatch.context() as broken:
        broken.setattr(collect, "plan_contents", lambda *_, **__: 1 / 0)
        await asyncio.to_thread(run.service.catalogue.delete, model.id)
        until = time.monotonic() + 60
        while "a round of collecting failed" not in caplog.text:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
    other = await run.add()
    await asyncio.to_thread(run.service.catalogue.delete, other.id)
    await run.settled(1)
    assert run.service.registry.models.list(state=ModelState.ACTIVE).items


async def test_the_disk_is_measured_and_a_low_one_is_told_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = run.service.rounds
    await rounds.run()
    assert sum(rounds.disk().stored.values()) == sum(
        each.bytes for each in run.service.catalogue.store.contents()
    )
    assert not rounds.disk().low
    free = REGISTRY.get_sample_value("stacked_disk_bytes", {"kind": "free"})
    stored = REGISTRY.get_sample_value("stacked_store_bytes", {"kind": "adapter"})
    assert free
    assert stored == sum(rounds.disk().stored.values())
    with caplog.at_level(logging.WARNING):
        rounds._settings = RETENTION.model_copy(update={"low_disk_bytes": 10**18})
        await rounds.run()
        await rounds.run()
    assert caplog.text.count("are free for") == 1
    assert rounds.disk().low
