"""What is counted in memory and made durable every few seconds.

A process that is killed loses what it counted since the last time. What cannot be written stays in
memory and is written later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from stacked.errors import StackedError

T = TypeVar("T")

FLUSH_SECONDS = 5.0


class Flushing(ABC, Generic[T]):
    """Counts of this process. `_begin`, use, `await close()`; all on one event loop."""

    def __init__(self, name: str) -> None:
        """`name` is who logs that it cannot be written."""
        self._logger = logging.getLogger(f"stacked.{name}")
        self._name = name
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._writing: asyncio.Future[None] | None = None

    @abstractmethod
    def _take(self) -> T | None:
        """What is not written yet, as something to be written at once; None: nothing."""

    @abstractmethod
    def _write(self, taken: T) -> None:
        """Make it durable, in a thread. What raises has written nothing of it."""

    @abstractmethod
    def _put_back(self, taken: T) -> None:
        """It was not written, and is to be written by the next flush."""

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._flush_again_and_again())

    @property
    def is_writing(self) -> bool:
        """Whether something that was counted is being written now."""
        return self._writing is not None and not self._writing.done()

    async def flush(self) -> None:
        """Write what was counted. Raises StackedError; it is then written by the next flush."""
        while self.is_writing:  # whoever waits for it finds all that was counted before
            assert self._writing is not None
            await asyncio.wait({self._writing})
        if self._task is None or (taken := self._take()) is None:
            return
        self._writing = writing = asyncio.ensure_future(asyncio.to_thread(self._write, taken))

        def settle(written: asyncio.Future[None]) -> None:
            if written.cancelled() or written.exception() is not None:
                self._put_back(taken)

        writing.add_done_callback(settle)
        # Not cancelled with whoever waits: the thread would go on, and the counts be added twice.
        await asyncio.shield(writing)

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
                self._logger.warning("%s cannot be written, trying again: %s", self._name, error)
            self._failing = True

    async def close(self) -> None:
        """Write what is left. Closing twice is allowed."""
        self._ending.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
