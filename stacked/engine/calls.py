"""Calls to a running vLLM: bounded in time, to all workers or in parts, with failures as ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any

from stacked.engine.causes import Causes, first_line
from stacked.errors import EngineDead, EngineError, EngineLoadFailed, EngineSilent, StackedError

# An engine call that takes longer than this is considered lost. Loads, which read adapters from
# disk, are sized for it (`_BYTES_AT_ONCE` in engine.py).
CALL_SECONDS = 120.0

# How long a step may wait for a part of what only the engine's loop can do: a share of the time of
# a step, which the last call measured. With this share a step of 38 ms took 43 to 45, less than one
# with a canary in it (docs/performance.md).
_PART_SHARE = 0.08
PART_SECONDS = (0.001, 0.008)


class Calls:
    """Calls to one vLLM client."""

    def __init__(self, client: Any, causes: Causes | None = None) -> None:
        """`causes` says why an engine died."""
        self.client = client
        self._causes = causes
        self._part = PART_SECONDS[0]

    async def call(self, call: Awaitable[Any], doing: str) -> Any:
        """Await one engine call. `doing` begins the sentence of its failure.

        Raises EngineLoadFailed with the worker's reason, EngineDead, and EngineSilent after
        CALL_SECONDS without an answer.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        try:
            # Not wait_for: it may lose a cancellation that arrives together with the answer.
            async with asyncio.timeout(CALL_SECONDS):
                return await call
        except TimeoutError as error:
            raise EngineSilent(
                f"{doing}: no answer from the engine in {time.monotonic() - started:.0f} s"
            ) from error
        except StackedError:
            raise
        except EngineDeadError as error:
            raise self.death() from error
        except Exception as error:  # as which the engine sends every failure of a worker
            raise EngineLoadFailed(f"{doing}: {first_line(error)}") from error

    async def workers(self, method: str, *args: Any, doing: str) -> Sequence[Any]:
        """Run a method of `StagingWorker` in every worker; what each answered."""
        rpc = self.client.collective_rpc(method, args=args)
        answers: Sequence[Any] = await self.call(rpc, doing)
        return answers

    async def part(self, method: str, *args: Any, doing: str) -> Sequence[Any]:
        """Have every worker do a part of something, sized by how long the last step took."""
        began = time.perf_counter()
        answers = await self.workers(method, *args, self._part, doing=doing)
        least, most = PART_SECONDS
        step = time.perf_counter() - began - self._part
        self._part = min(most, max(least, _PART_SHARE * step))
        return answers

    async def quietly(self, call: Awaitable[Any]) -> None:
        """Clean up before a failure is raised; a failure of the cleanup itself is ignored."""
        with contextlib.suppress(EngineError):
            await asyncio.shield(call)

    def death(self) -> EngineDead:
        """The error of an engine that has died, with the first cause that its log names."""
        cause = self._causes.first() if self._causes else None
        why = f": {cause}. Its log says more" if cause else "; its log says why"
        return EngineDead(f"the engine has died{why}. Restart the server")

    def end_of_start(self) -> None:
        """Stop looking for causes in the log: what fails from now on is not the start."""
        if self._causes is not None:
            self._causes.close()
