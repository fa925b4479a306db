"""Calls to a running vLLM: bounded in time, to all workers or in parts, with failures as ours.

Adapters that the workers read are waited for by one task, which polls for all, a part per step.

With `data_parallel_size` there are several engines, each with its own workers, behind one client.
The client's own calls reach all of them and return what the first one answered; here each answers
for itself.

Relies on: `AsyncLLM.engine_core` has such engines in `core_engines`, by rank, and in
`reqs_in_flight` the one of each request; `_call_utility_async` calls one of them. Each has the next
`world_size` GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from stacked.engine.causes import Causes, first_line
from stacked.engine.cpu_affinity import use_cores
from stacked.engine.loaded import Loaded
from stacked.engine.machine import CORES
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

# How long the end of an update waits for the loop to share its core again.
_GIVE_SECONDS = 2.0


class _Waiting(NamedTuple):
    """The waiter for one adapter to be staged, and its deadline on the monotonic clock."""

    ready: asyncio.Future[None]
    until: float


class Calls:
    """Calls to one vLLM client."""

    def __init__(
        self,
        client: Any,
        causes: Causes | None = None,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """`causes` says why an engine died, `ending` whether one has, so that all are ended."""
        self.client = client
        self._causes = causes
        self._ending = ending
        self.engines: int = client.vllm_config.parallel_config.data_parallel_size
        """How many engines the client has."""
        self._parts = [PART_SECONDS[0]] * self.engines
        self._waiting: dict[int, _Waiting] = {}
        self._advancing: asyncio.Task[None] | None = None
        self._limits: set[asyncio.Timeout] = set()
        self._over = False
        self.silent: set[int] = set()
        """The ranks of the engines that have not come to the last `step` yet."""

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
            if self._ending():  # or that it does nothing more, as another one has died
                raise self.death() from error
            raise EngineLoadFailed(f"{doing}: {first_line(error)}") from error

    def on(self, engine: int) -> str:
        """Which of several engines, for the end of a phrase."""
        return f" on engine {engine}" if self.engines > 1 else ""

    def rank_for(self, cards: Sequence[int]) -> int | None:
        """The engine with the fewest requests of those that have these GPUs; None: whichever."""
        if not cards or self.engines == 1:
            return None
        core, size = self.client.engine_core, self.client.vllm_config.parallel_config.world_size
        busy = Counter(core.reqs_in_flight.values())
        ranks = sorted({card // size for card in cards})
        free: int = min(ranks, key=lambda rank: busy[core.core_engines[rank]])
        return free

    def with_requests(
        self, rank: int, held: Collection[Loaded | None]
    ) -> Collection[Loaded | None]:
        """Those of `held` (None: the base) with requests on one of several engines."""
        core, states = self.client.engine_core, self.client.output_processor.request_states
        own = core.core_engines[rank]
        ids = [id for id, engine in core.reqs_in_flight.items() if engine == own]
        names = {states[id].lora_name for id in ids if id in states}
        return [each for each in held if (each.name if each else None) in names]

    async def step(self) -> None:
        """Return when each engine's loop has come round once more. Raises EngineDead."""
        self.silent = {*range(self.engines)}
        await asyncio.gather(*map(self._step, range(self.engines)))

    async def _step(self, engine: int) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._list(engine)
        except EngineDeadError as error:
            raise self.death() from error
        except Exception:  # noqa: BLE001  a worker that refuses has answered too
            pass
        self.silent.discard(engine)

    async def each(self, call: Callable[[int], Awaitable[Any]], doing: str) -> Sequence[Any]:
        """What `call` returns for each engine, by rank. Raises as `call` does, when all have ended.

        The engines do not wait for one another.
        """
        if self.engines == 1:
            return [await self.call(call(0), doing)]
        bounded = (self.call(call(at), f"{doing}{self.on(at)}") for at in range(self.engines))
        ends = await asyncio.gather(*bounded, return_exceptions=True)
        failed = [end for end in ends if isinstance(end, BaseException)]
        for error in sorted(failed, key=lambda error: isinstance(error, EngineLoadFailed)):
            raise error
        return ends

    async def workers(self, command: str, *args: Any, doing: str) -> Sequence[Any]:
        """Run a method of `staging.Commands` in every worker; what each answered, engine by engine.

        Raises EngineLoadFailed with the engine's name where one of several refuses.
        """
        answers = await self.each(lambda engine: self._rpc(engine, command, *args), doing)
        return [answer for workers in answers for answer in workers]

    async def part(self, command: str, *args: Any, doing: str) -> Sequence[Any]:
        """Have every worker do a part of something, sized by how long its last step took."""
        answers = await self.each(lambda engine: self._part(engine, command, *args), doing)
        return [answer for workers in answers for answer in workers]

    async def _part(self, engine: int, command: str, *args: Any) -> Sequence[Any]:
        began, size = time.perf_counter(), self._parts[engine]
        answers = await self._rpc(engine, command, *args, size)
        least, most = PART_SECONDS
        step = time.perf_counter() - began - size
        self._parts[engine] = min(most, max(least, _PART_SHARE * step))
        return answers

    async def lists(self) -> Sequence[set[int]]:
        """The numbers of the adapters that each engine holds in host memory."""
        answers = await self.each(self._list, "listing adapters")
        return [{*answer} for answer in answers]

    async def _list(self, engine: int) -> Any:
        if self.engines == 1:
            return await self.client.list_loras()
        return await self._utility(engine, "list_loras")

    async def _rpc(self, engine: int, command: str, *args: Any) -> Sequence[Any]:
        whole = (command, *args)
        answers: Sequence[Any]
        if self.engines == 1:
            answers = await self.client.collective_rpc("stacked_call", args=whole)
        else:
            answers = await self._utility(engine, "collective_rpc", "stacked_call", None, whole)
        return answers

    async def _utility(self, engine: int, method: str, *args: Any) -> Any:
        core = self.client.engine_core
        return await core._call_utility_async(method, *args, engine=core.core_engines[engine])

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
            self._report({number: self._end_of(each) for number, each in states.items()})
            reading = any(state == "reading" for each in states.values() for state, _ in each)
            # Without a pause, waiters still continue before the next part.
            await asyncio.sleep(_POLL_SECONDS if reading else 0)

    def _end_of(self, states: Sequence[Sequence[str]]) -> EngineError | bool:
        """How the staging of one adapter ended, from its state and reason in each worker."""
        for at, (state, reason) in enumerate(states):
            if state in ("failed", "absent"):
                engine = at * self.engines // len(states)
                return EngineLoadFailed(f"{reason or state}{self.on(engine)}")
        return all(state == "ready" for state, _ in states)

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

    @contextlib.asynccontextmanager
    async def core_for_loop(self) -> AsyncIterator[None]:
        """Within the block a core is left to the engine's loop, if one is free."""
        core: int | None = None
        try:
            with contextlib.suppress(EngineError):
                core = (await self.workers("take_core", [*CORES], doing="taking a core"))[0]
            if core is not None:
                use_cores(CORES - {core})
            yield
        finally:  # cancelled during the call, the loop may have taken one anyway
            if core is not None:
                use_cores(CORES)
            give = self.workers("give_core", [*CORES], doing="sharing a core")
            with contextlib.suppress(TimeoutError):  # a silent engine does it once it listens
                async with asyncio.timeout(_GIVE_SECONDS):
                    await self.quietly(give)

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
