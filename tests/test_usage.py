"""Usage in memory: written now and then and at the end, and never lost because a disk is full."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacked import flushing
from stacked.errors import RegistryUnusable
from stacked.registry import Registry
from stacked.registry.usage import Counts
from stacked.usage import Usage
from tests.waiting import until, until_async

ONE = Counts(1, 0, 10, 5)
KEPT = timedelta(days=1)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with Registry(path, busy_seconds=0.05) as opened:
        yield opened


def requests(registry: Registry) -> list[int]:
    return [each.counts.requests for each in registry.usage.totals(LONG_AGO)]


async def test_it_is_written_every_few_seconds_and_at_the_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "FLUSH_SECONDS", 0.01)
    usage = Usage()
    usage.begin(registry.usage, KEPT)
    usage.add("alice", "sql", ONE)
    await until_async(lambda: requests(registry))
    usage.add("alice", "sql", ONE)
    usage.add("bob", "sql", ONE)
    await usage.close()
    await usage.close()
    assert requests(registry) == [2, 1]


async def test_what_cannot_be_written_is_written_later_and_once(
    registry: Registry, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usage = Usage()
    usage.begin(registry.usage, KEPT)
    usage.add("alice", "sql", ONE)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(RegistryUnusable):
                await usage.flush()
        usage.add("alice", "sql", ONE)
    with caplog.at_level(logging.WARNING):
        await usage.close()
    assert requests(registry) == [2]
    assert not caplog.records


async def test_a_flush_that_nobody_waits_for_any_more_counts_once(registry: Registry) -> None:
    usage = Usage()
    usage.begin(registry.usage, KEPT)
    usage.add("alice", "sql", ONE)
    waiting = asyncio.create_task(usage.flush())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until_async(lambda: requests(registry))
    await usage.close()
    assert requests(registry) == [1]


async def test_without_records_it_only_counts() -> None:
    usage = Usage()
    usage.add("anyone", "sql", ONE)
    await usage.flush()
    await usage.close()


_COUNTING = """
import asyncio, sys
from datetime import timedelta
from stacked import flushing, usage
from stacked.registry import Registry
from stacked.registry.usage import Counts

async def main():
    flushing.FLUSH_SECONDS = 0.01
    registry, counted = Registry(sys.argv[1]), usage.Usage()
    counted.begin(registry.usage, timedelta(days=1))
    while True:
        counted.add("alice", "sql", Counts(1))
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_what_was_written_survives_a_kill(path: Path) -> None:
    def written() -> int:
        with Registry(path) as registry:
            return sum(requests(registry))

    process = subprocess.Popen([sys.executable, "-c", _COUNTING, str(path)])
    try:
        until(lambda: path.exists() and written() > 10)
        before = written()
    finally:
        process.kill()
        process.wait()
    assert before <= written()
