"""The rounds of one server: at intervals, after deletions, and on request."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stacked import metrics
from stacked.config import RetentionConfig
from stacked.engine.cpu_affinity import yield_to_others
from stacked.errors import StackedError
from stacked.retention.collect import Collector, Report
from stacked.store.text import size

logger = logging.getLogger("stacked.retention")

# Pause between two rounds, so that traffic has the disk in between.
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a data directory. `stored` are bytes by kind, as of the last round."""

    free: int
    total: int
    low: bool
    stored: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Path, low_bytes: int, stored: Mapping[str, int]) -> Disk:
        usage = shutil.disk_usage(place)
        return cls(usage.free, usage.total, usage.free < low_bytes, stored)


class Rounds:
    """Collections under traffic, in a thread of low priority. `begin`, use, `await close()`."""

    def __init__(self, collector: Collector, settings: RetentionConfig, data_dir: Path) -> None:
        self._collector = collector
        self._settings = settings
        self._data_dir = data_dir
        self._thread = ThreadPoolExecutor(1, "stacked-retention", initializer=yield_to_others)
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stored: Mapping[str, int] = {}
        self._warned = False

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run_all())

    def wake(self) -> None:
        """Run a round soon, as something was deleted or replaced. From any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wanted.set)

    async def run(self, *, dry_run: bool = False) -> Report:
        """One round, after the running one. Raises StoreUnusable, RegistryUnusable."""
        call = partial(self._collector.run, dry_run=dry_run)
        report = await asyncio.get_running_loop().run_in_executor(self._thread, call)
        if not dry_run:
            self._stored = report.stored_bytes
            self._tell(report)
        return report

    def disk(self) -> Disk:
        return Disk.of(self._data_dir, self._settings.low_disk_bytes, self._stored)

    async def close(self) -> None:
        """Wait for the running round, and begin no other."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _run_all(self) -> None:
        interval = self._settings.interval.total_seconds()
        while True:
            self._wanted.clear()
            unfinished = False
            try:
                unfinished = (await self.run()).unfinished
            except StackedError as error:
                logger.warning("nothing more is collected in this round: %s", error)
            except Exception:  # a fault of ours must not end all rounds
                logger.exception("a round of collecting failed")
            await asyncio.sleep(_PAUSE_SECONDS)
            if not unfinished:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), interval)

    def _tell(self, report: Report) -> None:
        disk = self.disk()
        metrics.disk(disk.free, disk.total, disk.stored)
        freed = [line for line in report.lines if line.freed]
        if freed:
            summary = ", ".join(f"{line.count} {line.kind}" for line in freed)
            logger.info("removed %s (%s)", summary, size(sum(line.bytes for line in freed)))
        for note in report.notes:
            logger.warning("%s", note)
        if disk.low and not self._warned:
            logger.warning("%s", low_disk(disk, self._data_dir))
        self._warned = disk.low


def low_disk(disk: Disk, data_dir: Path) -> str:
    """The warning about a disk that fills up."""
    return (
        f"{size(disk.free)} of {size(disk.total)} are free for {data_dir}; uploads that do not fit "
        "are refused. Delete models and groups that are not needed (stacked gc --dry-run shows "
        "what stays, and why), or free other space"
    )
