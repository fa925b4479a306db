"""Requests and tokens by credential and key: counted in memory, made durable every few seconds.

A process that is killed loses what it counted since the last time. What cannot be written stays in
memory and is written later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta

from stacked.errors import StackedError
from stacked.registry.usage import Counts, UsageRepository

logger = logging.getLogger("stacked.usage")

FLUSH_SECONDS = 5.0
_HOUR = timedelta(hours=1)


class Usage:
    """The counts of this process. `begin`, use, `await close()`; all on one event loop."""

    def __init__(self) -> None:
        self.pending: dict[tuple[str, str], Counts] = {}
        """What is not written yet, by credential and key; no more, however long that fails."""
        self._records: UsageRepository | None = None
        self._kept = _HOUR
        self._tidied = datetime.min.replace(tzinfo=UTC)
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def begin(self, records: UsageRepository, kept: timedelta) -> None:
        """Write the counts to these records from now on, where they stay so long."""
        self._records, self._kept = records, kept
        self._task = asyncio.create_task(self._flush_again_and_again())

    def add(self, credential: str, key: str, counts: Counts) -> None:
        """`key` is empty for a request that found no model."""
        before = self.pending.get((credential, key))
        self.pending[credential, key] = counts if before is None else before.plus(counts)

    async def flush(self) -> None:
        """Write what was counted. Raises StackedError; it is then written by the next flush."""
        if self._records is None or not self.pending:
            return
        counts, self.pending = self.pending, {}
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, self._records, counts))

        def settle(written: asyncio.Future[None]) -> None:
            if written.cancelled() or written.exception() is not None:
                for (credential, key), each in counts.items():
                    self.add(credential, key, each)

        writing.add_done_callback(settle)
        # Not cancelled with whoever waits: the thread would go on, and the counts be added twice.
        await asyncio.shield(writing)

    def _write(self, records: UsageRepository, counts: dict[tuple[str, str], Counts]) -> None:
        now = datetime.now(UTC)
        if abs(now - self._tidied) >= _HOUR:  # a clock may be set back
            records.forget(now - self._kept)
            self._tidied = now
        records.add(counts, now)  # last: it is not done twice

    async def _flush_again_and_again(self) -> None:
        ending = False
        while not ending:
            with contextlib.suppress(TimeoutError):
                ending = await asyncio.wait_for(self._ending.wait(), FLUSH_SECONDS)
            await self._try_to_flush()

    async def _try_to_flush(self) -> None:
        try:
            await self.flush()
            self._failing = False
        except StackedError as error:
            if not self._failing:  # one line, not one every few seconds
                logger.warning("usage cannot be written, trying again: %s", error)
            self._failing = True

    async def close(self) -> None:
        """Write what is left. Closing twice is allowed."""
        self._ending.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
