"""The processes that hold the same models, started again when they end, with all of these models.

A model that is there at three ends of a process is given up, so that the others are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from stacked import metrics
from stacked.errors import EngineDead, EngineLoadFailed, ModelTooSlow, StackedError
from stacked.models.workers import LOAD_SECONDS, Kind, Worker

_MOST_ENDS = 3
# Between two starts, doubled each time, until a process has run for long.
_PAUSES = (0.1, 30.0)
_LONG_SECONDS = 60.0
# After so long without an end, those before count no more.
_FORGOTTEN_SECONDS = 3600.0

T = TypeVar("T")


class Pool:
    """The processes of one kind of models. Make it within the event loop, and close it."""

    def __init__(self, kind: Kind, size: int, give_up: Callable[[int, str], None]) -> None:
        """`give_up` is called with a model that is served no more, and why."""
        self.kind = kind
        self.models: dict[int, str] = {}
        """What each process is to hold: the models' places on the disk, by number."""
        self._size, self._give_up = size, give_up
        self._coming: set[tuple[int, int]] = set()
        self._ends: dict[int, float] = defaultdict(float)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starts = [self._spawn(self._start(0.0)) for _ in range(size)]
        for at in range(size):
            self._spawn(self._run(at))

    @property
    def workers(self) -> list[Worker]:
        """The processes that run now."""
        return [worker for worker in self._started() if not worker.ending]

    async def load(self, number: int, path: str) -> dict[str, Any]:
        """Load a model everywhere, or nowhere; returns what a process reports of it.

        Raises EngineLoadFailed, EngineStartFailed, EngineNotInstalled.
        """
        self.models[number] = path
        places = {(at, number) for at in range(self._size)}
        self._coming |= places
        loads = [self._spawn(self._load_at(*place)) for place in places]
        try:
            # Until all have ended, so that none loads it later.
            await asyncio.gather(*loads, return_exceptions=True)
            reports = [each.result() for each in loads]
        except BaseException:
            self._forget(number)
            raise
        finally:
            self._coming -= places
        return reports[0]

    async def unload(self, *numbers: int) -> None:
        """Free these models, and the memory that they had. Idempotent."""
        for number in numbers:
            self.models.pop(number, None)
            self._ends.pop(number, None)
        for worker in self.workers:
            async with worker.loading:  # nothing is loaded that was just removed
                for number in numbers:
                    worker.loaded.pop(number, None)
                with contextlib.suppress(EngineDead, ModelTooSlow):
                    await worker.call("unload", LOAD_SECONDS, numbers=numbers)

    async def close(self) -> None:
        """End the processes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in self._started()))

    def _started(self) -> list[Worker]:
        done = [each for each in self._starts if each.done() and not each.cancelled()]
        return [each.result() for each in done if each.exception() is None]

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _forget(self, number: int) -> None:
        """`unload` in the background: other loads may be in its way."""
        self.models.pop(number, None)
        self._spawn(self.unload(number))

    async def _load_at(self, at: int, number: int) -> dict[str, Any]:
        for last in (False, True):
            worker = await asyncio.shield(self._starts[at])
            try:
                report = await self._put(worker, number)
                self._coming.discard((at, number))
                return report
            except ModelTooSlow as error:
                raise EngineLoadFailed(f"it is not loaded: {error}") from error
            except EngineDead as error:
                if last or worker.suspects == (number,):
                    reason = f"its process ended while it was loaded: {worker.reason}"
                    raise EngineLoadFailed(reason) from error
                await worker.replaced.wait()
        raise AssertionError

    async def _put(self, worker: Worker, number: int) -> dict[str, Any]:
        async with worker.loading:
            if number not in self.models:
                raise EngineLoadFailed("it was given up meanwhile")
            if number not in worker.loaded:
                path = self.models[number]
                report, _ = await worker.call("load", LOAD_SECONDS, number=number, path=path)
                worker.loaded[number] = report
            return worker.loaded[number]

    async def _start(self, pause: float) -> Worker:
        await asyncio.sleep(pause)
        return await Worker.start(self.kind, self._size)

    async def _run(self, at: int) -> None:
        """Have a process at this place, always."""
        pause = _PAUSES[0]
        while True:
            start, began = self._starts[at], time.monotonic()
            await asyncio.wait([start])
            worker = None if start.exception() else start.result()
            if worker is not None:
                await self._reload(at, worker)
                await asyncio.wait([worker.ended])
                metrics.model_process_ended(self.kind.runtime)
                self._count_end(worker, time.monotonic() - began)
                pause = _PAUSES[0] if time.monotonic() - began > _LONG_SECONDS else pause
            self._starts[at] = self._spawn(self._start(pause))
            pause = min(2 * pause, _PAUSES[1])
            if worker is not None:
                worker.replaced.set()

    async def _reload(self, at: int, worker: Worker) -> None:
        """Load all models into a new process, those last that were there when one ended."""
        there = [number for number in self.models if (at, number) not in self._coming]
        for number in sorted(there, key=lambda number: self._ends.get(number, 0.0)):
            try:
                await self._put(worker, number)
            except EngineDead:
                return
            except StackedError as error:
                if number in self.models:
                    self._abandon(number, f"it cannot be loaded again: {error}")

    def _count_end(self, worker: Worker, lived: float) -> None:
        """Several that were there share in an end: it is one of them that is at fault."""
        if lived > _FORGOTTEN_SECONDS:
            self._ends.clear()
        there = [number for number in worker.suspects if number in self.models]
        for number in there:
            self._ends[number] += 1 / len(there)
            if self._ends[number] > _MOST_ENDS - 0.01:
                self._abandon(number, f"its process ended {_MOST_ENDS} times: {worker.reason}")

    def _abandon(self, number: int, reason: str) -> None:
        self._forget(number)
        self._give_up(number, reason)
