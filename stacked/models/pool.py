"""The processes that hold the same models, started again when they end, with all of these models.

A model that is there at three ends of a process is given up, so that the others are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from stacked import metrics
from stacked.errors import (
    CanaryFailed,
    EngineDead,
    EngineError,
    EngineLoadFailed,
    ModelTooSlow,
    NotReady,
    StackedError,
)
from stacked.models.workers import LOAD_SECONDS, Kind, Worker

_MOST_ENDS = 3
# Between two starts, doubled each time, until a process has run for long.
_PAUSES = (0.1, 30.0)
_LONG_SECONDS = 60.0
# After so long without an end, those before count no more.
_FORGOTTEN_SECONDS = 3600.0


class Pool:
    """The processes of one kind of models. Make it within the event loop, and close it."""

    def __init__(self, kind: Kind, size: int, give_up: Callable[[int, str], None]) -> None:
        """`give_up` is called with a model that is served no more, and why."""
        self._kind, self._size, self._give_up = kind, size, give_up
        self._paths: dict[int, str] = {}
        self._ends: dict[int, float] = {}
        self._workers: list[Worker | None] = [None] * size
        self._started = [asyncio.Event() for _ in range(size)]
        self._failure: EngineError = NotReady("the process of this model has not started")
        self._tasks = {asyncio.create_task(self._run(at)) for at in range(size)}
        self.users = 0
        """Models that are here or on their way; see `ModelsEngine`."""

    @property
    def workers(self) -> list[Worker]:
        """The processes that run now."""
        return [each for each in self._workers if each is not None and not each.ending]

    async def load(self, number: int, path: str) -> dict[str, Any]:
        """Load a model everywhere; returns what the processes report of it.

        Follow with `unload`, after an error with `forget`.

        Raises EngineLoadFailed, EngineStartFailed.
        """
        loads = (self._load_at(at, number, path) for at in range(self._size))
        reports = await asyncio.gather(*loads, return_exceptions=True)
        for failure in reports:  # after all have ended, so that none loads it later
            if isinstance(failure, BaseException):
                raise failure
        self._paths[number] = path
        for worker in self.workers:  # those that were started meanwhile did not know it
            with contextlib.suppress(EngineDead):
                await self._put(worker, number, path)
        return next(each for each in reports if not isinstance(each, BaseException))

    async def unload(self, *numbers: int) -> None:
        """Free these models, and the memory that they had. Idempotent."""
        for number in numbers:
            self._paths.pop(number, None)
            self._ends.pop(number, None)
        for worker in self.workers:
            async with worker.loading:  # nothing is loaded that was just removed
                for number in numbers:
                    worker.loaded.pop(number, None)
                with contextlib.suppress(EngineDead, ModelTooSlow):
                    await worker.call("unload", LOAD_SECONDS, numbers=numbers)

    def forget(self, number: int) -> None:
        """`unload` in the background: a load that hangs may be in its way."""
        task = asyncio.create_task(self.unload(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def has(self, number: int) -> list[Worker]:
        """The processes that can answer for this model now."""
        return [worker for worker in self.workers if number in worker.loaded]

    async def answer(self, number: int, seconds: float, body: bytes, **head: Any) -> bytes:
        """The answer of a model. Raises NotReady while its process is started again."""
        return (await self._call("answer", number, seconds, body, **head))[1]

    async def try_out(self, number: int, seconds: float, path: str) -> None:
        """Raises CanaryFailed if it does not answer its example or zeros."""
        try:
            await self._call("try", number, seconds, b"", path=path, model="", version="", type="")
        except EngineDead as error:
            raise CanaryFailed(f"its process ended when it was tried: {error}") from error
        except NotReady:
            raise
        except StackedError as error:
            raise CanaryFailed(f"it does not answer its canary: {error}") from error

    async def close(self) -> None:
        """End the processes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _call(
        self, do: str, number: int, seconds: float, body: bytes, **head: Any
    ) -> tuple[dict[str, Any], bytes]:
        able = self.has(number)
        if not able:
            raise NotReady("this model is being loaded again, as its process ended; repeat later")
        worker = min(able, key=lambda each: each.waiting)
        return await worker.call(do, seconds, body, number, **head)

    async def _load_at(self, at: int, number: int, path: str) -> dict[str, Any]:
        for last in (False, True):
            await self._started[at].wait()
            worker = self._workers[at]
            if worker is None:
                raise self._failure
            try:
                return await self._put(worker, number, path)
            except ModelTooSlow as error:
                raise EngineLoadFailed(f"it is not loaded: {error}") from error
            except EngineDead as error:
                self._gone(at, worker)
                if last or worker.suspects == (number,):
                    reason = f"its process ended while it was loaded: {worker.reason}"
                    raise EngineLoadFailed(reason) from error
        raise AssertionError

    async def _put(self, worker: Worker, number: int, path: str) -> dict[str, Any]:
        async with worker.loading:
            if number not in worker.loaded:
                report, _ = await worker.call("load", LOAD_SECONDS, number=number, path=path)
                worker.loaded[number] = report
            return worker.loaded[number]

    async def _run(self, at: int) -> None:
        """Have a process at this place, always."""
        pause = _PAUSES[0]
        while True:
            began = time.monotonic()
            try:
                worker = await Worker.start(self._kind, self._size)
            except EngineError as error:
                self._failure = error
                self._started[at].set()
            else:
                self._workers[at] = worker
                self._started[at].set()
                try:
                    await self._reload(worker)
                    await asyncio.wait([worker.ended])
                finally:
                    self._gone(at, worker)
                    await worker.end()
                metrics.model_process_ended(self._kind.runtime)
                lived = time.monotonic() - began
                pause = _PAUSES[0] if lived > _LONG_SECONDS else pause
                if lived > _FORGOTTEN_SECONDS:
                    self._ends.clear()
                self._count_end(worker)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])

    def _gone(self, at: int, worker: Worker) -> None:
        if self._workers[at] is worker:
            self._workers[at] = None
            self._started[at].clear()

    async def _reload(self, worker: Worker) -> None:
        """Load all models into a new process, those last that were there when one ended."""
        for number, path in sorted(
            self._paths.items(), key=lambda item: self._ends.get(item[0], 0.0)
        ):
            if number in self._paths:
                try:
                    await self._put(worker, number, path)
                except (EngineDead, ModelTooSlow):
                    return
                except StackedError as error:
                    self._abandon(number, f"it cannot be loaded again: {error}")

    def _count_end(self, worker: Worker) -> None:
        """Several that were there share in an end: it is one of them that is at fault."""
        there = [number for number in worker.suspects if number in self._paths]
        for number in there:
            self._ends[number] = self._ends.get(number, 0.0) + 1 / len(there)
            if self._ends[number] > _MOST_ENDS - 0.01:
                self._abandon(number, f"its process ended {_MOST_ENDS} times: {worker.reason}")

    def _abandon(self, number: int, reason: str) -> None:
        self.forget(number)
        self._give_up(number, reason)
