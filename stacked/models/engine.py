"""The engine of groups whose models are no adapters: the same interface as vLLM's has for a change.

It stages, verifies and removes models in worker processes, and has them answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stacked.core import Content, Digest, ModelFiles, Runtime, short
from stacked.engine.machine import memory
from stacked.errors import CanaryFailed, GroupImpossible, NotReady, StackedError
from stacked.models.pool import Pool
from stacked.models.workers import Kind, resident_bytes

# A model in memory, by the size of its files, before it is measured: weights, a copy of them in
# the layout of the library, and its buffers.
_TIMES = 3
RESERVE_BYTES = 512 * 1024**2
"""Memory that stays free for the server itself and for requests."""
_PLATFORMS = {
    Runtime.ONNX: "onnxruntime_onnx",
    Runtime.SAVED_MODEL: "tensorflow_savedmodel",
    Runtime.TORCH: "pytorch_libtorch",
}


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A model in its processes. `number` is used once."""

    digest: Digest
    name: str
    number: int
    content: ModelFiles = field(compare=False)

    @property
    def stored(self) -> frozenset[Digest]:
        """See `Content.stored`."""
        return self.content.stored


@dataclass(frozen=True, slots=True)
class _Held:
    handle: ModelHandle
    pool: Pool
    report: Mapping[str, Any]


class ModelsEngine:
    """Worker processes and what they hold; a `GroupEngine`. Close it at the end."""

    takes_binary = False
    """Whether tensors may be in binary, as a header then says."""

    def __init__(
        self,
        give_up: Callable[[ModelHandle, str], None],
        *,
        processes: int = 1,
        user: str = "",
        deadline_seconds: float = 60.0,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        """`give_up` is called with a model that is served no more, and why.

        `processes`: of each kind of models; `user`: whom they run as, if not this one's user.
        """
        self._give_up, self._processes, self._user = give_up, processes, user
        self._deadline, self._reserve = deadline_seconds, reserve_bytes
        self._numbers = itertools.count(1)
        self._pools: dict[Kind, Pool] = {}
        self._held: dict[int, _Held] = {}
        self._promised = 0

    @property
    def memory_bytes(self) -> int:
        """What the processes have in memory now."""
        return sum(map(resident_bytes, self.pids))

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [worker.pid for pool in self._pools.values() for worker in pool.workers]

    async def start(self) -> None:
        """Processes start with their first model."""

    # -- a change of the group ---------------------------------------------------------------

    def check(self, content: Content) -> None:
        """Refuse what does not fit in memory. Raises GroupImpossible."""
        self.fits([content])

    def fits(self, contents: Iterable[Content]) -> None:
        """Raises GroupImpossible if these together, by their size on disk, do not fit in memory."""
        size = sum(content.bytes for content in contents)
        need = size * _TIMES * self._processes + self._promised
        free = max(0, memory()[1] - self._reserve)
        if need > free:
            raise GroupImpossible(
                f"models of {size / 1e6:,.0f} MB need some {need / 1e6:,.0f} MB ({_TIMES} times "
                f"their size in each of {self._processes} processes, and what is being loaded); "
                f"{free / 1e6:,.0f} MB are free beyond {self._reserve / 1e6:,.0f} MB in reserve"
            )

    async def stage(self, content: Content) -> ModelHandle:
        """Load a model into its processes.

        Raises EngineLoadFailed, EngineStartFailed, EngineNotInstalled, GroupImpossible.
        """
        assert isinstance(content, ModelFiles), "the members of these groups are models"
        self.fits([content])
        number = next(self._numbers)
        handle = ModelHandle(content.digest, f"{content.digest}.{number}", number, content)
        kind = Kind.of(content, self._user)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = Pool(kind, self._processes, self._abandoned)
        need = content.bytes * _TIMES * self._processes
        self._promised += need
        pool.users += 1
        try:
            report = await pool.load(number, str(content.path))
        except BaseException:
            pool.forget(number)
            await asyncio.shield(self._left(pool, 1))
            raise
        finally:
            self._promised -= need
        self._held[number] = _Held(handle, pool, report)
        return handle

    async def adopt(self, handle: ModelHandle) -> None:
        """A staged model can answer."""

    async def activate(self, handle: ModelHandle) -> bool:
        """A staged model is where it computes."""
        return True

    async def verify(
        self, staged: Mapping[Digest, ModelHandle], done: Callable[[int], None]
    ) -> Mapping[Digest, StackedError]:
        """Which of these do not answer their example, or zeros of their shapes; and why."""
        failed: dict[Digest, StackedError] = {}
        for at, (digest, handle) in enumerate(staged.items(), start=1):
            path = str(handle.content.path)
            try:
                await self._of(handle).pool.try_out(handle.number, self._deadline, path)
            except CanaryFailed as error:
                failed[digest] = error
            done(at)
        return failed

    async def discard(self, *handles: ModelHandle) -> None:
        """Free these. Idempotent."""
        gone = [held for each in handles if (held := self._held.pop(each.number, None))]
        for pool in {held.pool for held in gone}:
            await self._leave(pool, [held.handle.number for held in gone if held.pool is pool])

    async def remove(self, *handles: ModelHandle) -> None:
        """Free these. Idempotent."""
        await self.discard(*handles)

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Loading has a thread of its own in each process."""
        yield

    async def close(self) -> None:
        """End all processes. Idempotent."""
        self._held.clear()
        pools, self._pools = [*self._pools.values()], {}
        await asyncio.gather(*(pool.close() for pool in pools))

    async def _leave(self, pool: Pool, numbers: list[int]) -> None:
        await pool.unload(*numbers)
        await self._left(pool, len(numbers))

    async def _left(self, pool: Pool, count: int) -> None:
        pool.users -= count
        if not pool.users:
            self._pools = {kind: each for kind, each in self._pools.items() if each is not pool}
            await pool.close()

    def _abandoned(self, number: int, reason: str) -> None:
        if held := self._held.get(number):
            self._give_up(held.handle, reason)

    # -- requests ------------------------------------------------------------------------------

    async def infer(
        self, handle: ModelHandle, body: bytes, content_type: str, model: str = ""
    ) -> bytes:
        """The answer to a request body, as JSON; `model` is how the answer names the model.

        Raises ParameterInvalid, BodyInvalid, ModelError, EngineDead, NotReady.
        """
        held, version = self._of(handle), short(handle.digest)
        return await held.pool.answer(
            handle.number, self._deadline, body, type=content_type, model=model, version=version
        )

    async def exchange(
        self, handle: ModelHandle, body: bytes, headers: Mapping[str, str], model: str = ""
    ) -> tuple[bytes, Mapping[str, str]]:
        """`infer` with the headers of a request and of its answer."""
        return await self.infer(handle, body, headers.get("content-type", ""), model), {}

    def metadata(self, handle: ModelHandle, model: str = "") -> bytes:
        """A model's inputs and outputs as the Open Inference Protocol has them, as JSON."""
        report = self._of(handle).report
        return json.dumps(
            {
                "name": model,
                "versions": [short(handle.digest)],
                "platform": _PLATFORMS.get(handle.content.runtime, "python_score"),
                "inputs": report["inputs"],
                "outputs": report["outputs"],
            }
        ).encode()

    def ready(self, handle: ModelHandle) -> bool:
        """Whether a process can answer for this model now."""
        held = self._held.get(handle.number)
        return held is not None and bool(held.pool.has(handle.number))

    def resident(self, handle: ModelHandle) -> int:
        """Bytes of memory that the model took when it was loaded, in one process."""
        return int(self._of(handle).report["bytes"])

    def _of(self, handle: ModelHandle) -> _Held:
        held = self._held.get(handle.number)
        if held is None:
            raise NotReady(f"the processes do not hold {handle.name}")
        return held
