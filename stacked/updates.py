"""LIVE updates as people ask for them: one at a time, each with its work request and its records.

Between a group's id and `Live.update`. It must not know HTTP or how a group is made live.
"""

from __future__ import annotations

import asyncio
import logging

from stacked import metrics
from stacked.core import ModelGroup
from stacked.errors import RankRefused, StackedError, UpdateFailed, UpdateInProgress
from stacked.ledger import Ledger, UpdateJournal
from stacked.registry import WorkRequest
from stacked.serving import Serving

logger = logging.getLogger("stacked.updates")


class Updates:
    """The updates of one serving engine. `await close()` gives up what runs."""

    def __init__(self, serving: Serving, ledger: Ledger) -> None:
        self._serving = serving
        self._ledger = ledger
        self._beginning = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._work_id: str | None = None

    @property
    def running(self) -> str | None:
        """The id of the work request of the update that is under way."""
        return self._work_id if self._task is not None and not self._task.done() else None

    async def begin(self, group_id: str) -> WorkRequest:
        """Start replacing the served group by this one, LIVE; follow the work request.

        Raises RecordAbsent, AdapterAbsent, UpdateNotLive, and UpdateInProgress while another change
        is under way. What fails later is told by the work request, and the old group serves on.
        """
        self._serving.live.check_free()
        if self.running is not None or self._beginning.locked():
            raise UpdateInProgress("another update is under way; follow its work request")
        async with self._beginning:
            ledger = self._ledger
            wanted = await asyncio.to_thread(ledger.wanted, group_id, self._serving.base)
            work = await asyncio.to_thread(ledger.open_update, group_id)
            journal = ledger.journal(work, group_id, wanted)
            self._work_id = work.id
            self._task = asyncio.create_task(self._run(wanted, journal))
        return work

    async def close(self) -> None:
        """Give up what runs: a start that follows serves what was committed, so it may end
        anywhere.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, wanted: ModelGroup, journal: UpdateJournal) -> None:
        try:
            self._check_ranks(wanted, journal)
            report = await self._serving.live.update(wanted.base, wanted.members, journal)
        except StackedError as error:
            logger.warning("the update failed, the old group serves on: %s", error)
            metrics.swap_ended("failed", {})
            await journal.failed(error)
            return
        except Exception as error:  # a fault of ours must not leave the record open for ever
            logger.exception("the update failed")
            metrics.swap_ended("failed", {})
            await journal.failed(UpdateFailed(f"an internal error: {type(error).__name__}"))
            return
        metrics.swap_ended("succeeded", {p.value: took for p, took in report.seconds.items()})
        self._serving.count()
        told = f"generation {report.generation}: {len(report.loaded)} loaded, "
        told += f"{len(report.dropped)} dropped, {report.ended} requests ended at the deadline"
        await journal.succeeded(told)

    def _check_ranks(self, wanted: ModelGroup, journal: UpdateJournal) -> None:
        """An engine's rank is set when it starts; what is above it is refused, model by model."""
        most = self._serving.plan.max_rank
        above = [member for member in wanted if member.adapter.rank > most]
        for member in above:
            error = RankRefused(
                f"{member.label} has rank {member.adapter.rank}, and this engine takes {most}; "
                "set engine.max_lora_rank and restart"
            )
            journal.refused(member.adapter.digest, error)
        if above:
            raise UpdateFailed(f"{len(above)} models have a rank above {most}, which is not LIVE")
