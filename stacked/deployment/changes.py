"""Work on deployments: one piece at a time, each with its work request and its undoing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from stacked.deployment.ledger import Ledger
from stacked.errors import (
    IllegalMove,
    RecordConflict,
    StackedError,
    UpdateFailed,
    UpdateInProgress,
)
from stacked.registry import WorkRequest

logger = logging.getLogger("stacked.deployment.changes")

CANCELED = "it was canceled"

Undo = Callable[[str], Awaitable[None]]
"""Puts everything back; called with the reason."""


class Change:
    """Work in progress. `settled` says why it can no longer be canceled, if so."""

    def __init__(self, work: WorkRequest, deployment_id: str, settled: str = "") -> None:
        self.work_id = work.id
        self.deployment_id = deployment_id
        self.settled = settled
        self.begun = False
        self.over = False
        """Only the end is still to be recorded, which clients may see at once."""

    def settle(self, why: str) -> None:
        """From now on this cannot be undone."""
        self.settled = why


class Changes:
    """The work of one server. `await close()` cancels what runs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._beginning = asyncio.Lock()
        self._change: Change | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def running(self) -> Change | None:
        """The work in progress."""
        change, task = self._change, self._task
        if change is None or task is None or task.done() or change.over:
            return None
        return change

    @contextlib.asynccontextmanager
    async def beginning(self) -> AsyncIterator[None]:
        """Reserve the place of the next change. Raises UpdateInProgress while another has it."""
        if self.running is not None or self._beginning.locked():
            raise UpdateInProgress("another change is under way; follow its work request")
        async with self._beginning:
            await self.wait()  # the last line of one that is over
            yield

    def launch(self, change: Change, act: Coroutine[Any, Any, str], undo: Undo) -> None:
        """Start the work, which returns a message about what was done."""
        self._change = change
        self._task = asyncio.create_task(self._run(change, act, undo))

    async def cancel(self, work_id: str) -> None:
        """Cancel the work and restore everything; follow its work request.

        Raises RecordAbsent, and RecordConflict if it can no longer be undone.
        """
        change, task = self.running, self._task
        if change is None or task is None or change.work_id != work_id:
            work = await self._ledger.do(self._ledger.registry.work_requests.get, work_id)
            raise RecordConflict(
                f"work request {work_id} is {work.status.value}; there is nothing to cancel"
            )
        if not change.begun:  # a task that is canceled before it runs would undo nothing
            await asyncio.sleep(0)
        if change.settled:
            raise RecordConflict(f"work request {work_id} cannot be canceled: {change.settled}")
        # Nothing may come between the check and this, or the work could pass its switch.
        change.settle("it is being canceled already")
        requested = self._ledger.write(partial(self._ledger.registry.work_requests.cancel, work_id))
        task.cancel()
        await asyncio.wrap_future(requested)

    async def close(self) -> None:
        """Give up what runs: a start that follows serves what was committed, so it may end
        anywhere.
        """
        self._closing = True
        if self._task is not None:
            await asyncio.sleep(0)  # what has not begun yet begins, so that it can end
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def wait(self) -> None:
        """Wait until what runs has ended."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, change: Change, act: Coroutine[Any, Any, str], undo: Undo) -> None:
        requests = self._ledger.registry.work_requests
        change.begun = True
        try:
            text = await act
        except asyncio.CancelledError:
            if self._closing:
                raise
            await undo(CANCELED)
            change.over = True
            await self._end(requests.canceled, change.work_id)
        except StackedError as error:
            change.settle("it has failed")
            logger.warning("work %s failed: %s", change.work_id, error)
            await self._failed(change, error, undo)
        except Exception as error:  # a fault of ours must not leave the record open
            change.settle("it has failed")
            logger.exception("work %s failed", change.work_id)
            fault = UpdateFailed(f"an internal error: {type(error).__name__}")
            await self._failed(change, fault, undo)
        else:
            change.over = True
            await self._end(requests.succeed, change.work_id, text)
        finally:
            act.close()  # if it was not even begun

    async def _failed(self, change: Change, error: StackedError, undo: Undo) -> None:
        await undo(str(error))
        change.over = True
        fail = self._ledger.registry.work_requests.fail
        await self._end(fail, change.work_id, error.code, str(error))

    async def _end(self, end: Callable[..., WorkRequest], *args: str) -> None:
        try:
            await self._ledger.with_retry(end, *args)
        except IllegalMove as error:  # of a fleet, in which another replica has ended it
            logger.info("%s", error)
