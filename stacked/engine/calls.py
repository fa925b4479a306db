"""Calls to a running vLLM: bounded in time, to all workers or in parts, with failures as ours.

Adapters that the workers read are waited for by one task, which polls for all, a part per step.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

from stacked.engine.causes import Causes, first_line
from stacked.errors import EngineDead, EngineError, EngineLoadFailed, EngineSilent, StackedError

# An engine call that takes longer than this is considered lost. Loads, which read adapters from
# disk, are sized for it (`_BYTES_AT_ONCE` in engine.py).
CALL_SECONDS = 120.0

# Between two polls for an adapter that is being read: each costs the engine's loop under 1 ms.
_POLL_SECONDS = 0.05

# How long a step may wait for a part of what only the engine's loop can do: a share of the time of
# a step, which the last call measured. With this share a step of 38 ms took 43 to 45, less than one
# with a canary in it (docs/performance.md). A part is at least the millisecond that a call costs by
# itself, and at most what a step of 100 ms gives, so that no stall makes the next part long.
_PART_SHARE = 0.08
PART_SECONDS = (0.001, 0.008)


class _Waiting(NamedTuple):
    """The waiter for one adapter to be staged, and its deadline on the monotonic clock."""

    ready: asyncio.Future[None]
    until: float


class Calls:
    """Calls to one vLLM client."""

    def __init__(self, client: Any, causes: Causes | None = None) -> None:
        """`causes` says why an engine died."""
        self.client = client
        self._causes = causes
        self._part = PART_SECONDS[0]
        self._waiting: dict[int, _Waiting] = {}
        self._advancing: asyncio.Task[None] | None = None
        self._limits: set[asyncio.Timeout] = set()
        self._over = False

    async def call(self, call: Awaitable[Any], doing: str) -> Any:
        """Await one engine call. `doing` begins the sentence of its failure.

        Raises EngineLoadFailed with the worker's reason, EngineDead, and EngineSilent after
        CALL_SECONDS without an answer.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        try:
            # Not wait_for: it may lose a cancellation that arrives together with the answer.
            async with asyncio.timeout(0 if self._over else CALL_SECONDS) as limit:
                self._limits.add(limit)
                try:
                    return await call
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            if self._over:
                raise self.death() from error
            raise EngineSilent(
                f"{doing}: no answer from the engine in {time.monotonic() - started:.0f} s"
            ) from error
        except StackedError:
            raise
        except EngineDeadError as error:
            raise self.death() from error
        except Exception as error:  # as which the engine sends every failure of a worker
            raise EngineLoadFailed(f"{doing}: {first_line(error)}") from error

    async def workers(self, command: str, *args: Any, doing: str) -> Sequence[Any]:
        """Run a method of `staging.Commands` in every worker; what each answered."""
        rpc = self.client.collective_rpc("stacked_call", args=(command, *args))
        answers: Sequence[Any] = await self.call(rpc, doing)
        return answers

    async def part(self, command: str, *args: Any, doing: str) -> Sequence[Any]:
        """Have every worker do a part of something, sized by how long the last step took."""
        began = time.perf_counter()
        answers = await self.workers(command, *args, self._part, doing=doing)
        least, most = PART_SECONDS
        step = time.perf_counter() - began - self._part
        self._part = min(most, max(least, _PART_SHARE * step))
        return answers

    async def read(self, number: int, name: str, path: str, *, doing: str) -> None:
        """Have every worker read an adapter; returns when all have. Raises EngineLoadFailed."""
        await self.workers("stage", number, name, path, doing=doing)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Waiting(ready, time.monotonic() + CALL_SECONDS)
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
                answers = await self.part("advance", numbers, doing="staging adapters")
            except EngineError as error:
                self._report(dict.fromkeys(numbers, error))
                return
            states = dict(zip(numbers, zip(*answers, strict=True), strict=True))
            self._report({number: _end_of(each) for number, each in states.items()})
            reading = any(state == "reading" for each in states.values() for state, _ in each)
            # Without a pause, waiters still continue before the next part.
            await asyncio.sleep(_POLL_SECONDS if reading else 0)

    def _report(self, ends: Mapping[int, EngineError | bool]) -> None:
        """Wake the waiters for these adapters: an error, True for read, False for not yet."""
        for number, end in ends.items():
            waiting = self._waiting.get(number)
            if waiting is None or waiting.ready.done():
                continue
            if not end and time.monotonic() > waiting.until:
                end = EngineLoadFailed(f"not read in {CALL_SECONDS:.0f} s")
            if isinstance(end, EngineError):
                waiting.ready.set_exception(end)
            elif end:
                waiting.ready.set_result(None)

    async def quietly(self, call: Awaitable[Any]) -> None:
        """Clean up before a failure is raised; a failure of the cleanup itself is ignored."""
        with contextlib.suppress(EngineError):
            await asyncio.shield(call)

    def death(self) -> EngineDead:
        """The error of an engine that has died, with the first cause that its log names."""
        cause = self._causes.first() if self._causes else None
        why = f": {cause}. Its log says more" if cause else "; its log says why"
        return EngineDead(f"the engine has died{why}")

    def end(self) -> None:
        """The engine has died: vLLM would leave those who wait for an answer waiting."""
        self._over = True
        for limit in self._limits:
            limit.reschedule(0)

    def end_of_start(self) -> None:
        """Stop looking for causes in the log: what fails from now on is not the start."""
        if self._causes is not None:
            self._causes.close()


def _end_of(states: Sequence[Sequence[str]]) -> EngineError | bool:
    """How the staging of one adapter ended, from its state and reason in each worker."""
    failed = [reason or state for state, reason in states if state in ("failed", "absent")]
    if failed:
        return EngineLoadFailed(failed[0])
    return all(state == "ready" for state, _ in states)
