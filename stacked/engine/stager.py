"""Waiting for adapters that the workers read: one task polls for all of them, a part per step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stacked.engine import calls
from stacked.engine.calls import Calls
from stacked.errors import EngineError, EngineLoadFailed

# Between two polls for an adapter that is being read: each costs the engine's loop under 1 ms.
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The waiters for one adapter to be staged, and their deadline on the monotonic clock."""

    ready: asyncio.Future[None]
    until: float


class Stager:
    """Adapters on their way into the workers' memory."""

    def __init__(self, engine: Calls) -> None:
        self._engine = engine
        self._waiting: dict[int, _Waiting] = {}
        self._advancing: asyncio.Task[None] | None = None

    async def read(self, number: int, name: str, path: str, *, doing: str) -> None:
        """Have every worker read an adapter; returns when all have. Raises EngineLoadFailed."""
        await self._engine.workers("stacked_stage", number, name, path, doing=doing)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Waiting(ready, time.monotonic() + calls.CALL_SECONDS)
        if self._advancing is None or self._advancing.done():
            self._advancing = asyncio.create_task(self._advance())
        try:
            await ready
        except EngineLoadFailed as error:
            raise EngineLoadFailed(f"{doing}: {error}") from error
        finally:
            del self._waiting[number]

    async def _advance(self) -> None:
        """Continue everything that is being staged, one part per step in all."""
        while self._waiting:
            numbers = [*self._waiting]
            try:
                answers = await self._engine.part(
                    "stacked_advance", numbers, doing="staging adapters"
                )
            except EngineError as error:
                self._report(dict.fromkeys(numbers, error))
                return
            states = dict(zip(numbers, zip(*answers, strict=True), strict=True))
            self._report({number: _end_of(each) for number, each in states.items()})
            if any(state == "reading" for each in states.values() for state, _ in each):
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                await asyncio.sleep(0)  # waiters continue before the next part

    def _report(self, ends: Mapping[int, EngineError | bool]) -> None:
        """Wake the waiters for these adapters: an error, True for read, False for not yet."""
        for number, end in ends.items():
            waiting = self._waiting.get(number)
            if waiting is None or waiting.ready.done():
                continue
            if isinstance(end, EngineError):
                waiting.ready.set_exception(end)
            elif end:
                waiting.ready.set_result(None)
            elif time.monotonic() > waiting.until:
                late = EngineLoadFailed(f"not read in {calls.CALL_SECONDS:.0f} s")
                waiting.ready.set_exception(late)


def _end_of(states: Sequence[Sequence[str]]) -> EngineError | bool:
    """How the staging of one adapter ended, from its state and reason in each worker."""
    failed = [reason or state for state, reason in states if state in ("failed", "absent")]
    if failed:
        return EngineLoadFailed(failed[0])
    return all(state == "ready" for state, _ in states)
