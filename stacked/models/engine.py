"""The engine of groups whose models are no adapters: the same interface as vLLM's for a change.

Its models are in worker processes; those of `triton.TritonEngine` are in a server elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stacked.core import Content, Digest, ModelFiles, Runtime, short
from stacked.engine.machine import memory
from stacked.errors import CanaryFailed, GroupImpossible, NotReady, StackedError
from stacked.models.pool import Pool
from stacked.models.workers import Kind, Worker

# A model in memory, by the size of its files, before it is measured: weights, a copy of them in
# the layout of the library, and its buffers.
_TIMES = 3
RESERVE_BYTES = 512 * 1024**2
"""Memory that stays free for the server itself and for requests."""
EXAMPLE = "example.json"
"""The file of a model that is a request body: what its canary sends."""
PLATFORMS = {
    Runtime.ONNX: "onnxruntime_onnx",
    Runtime.SAVED_MODEL: "tensorflow_savedmodel",
    Runtime.TORCH: "pytorch_libtorch",
}


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A model that an engine holds. `number` is used once."""

    digest: Digest
    name: str
    number: int
    content: ModelFiles = field(compare=False)
    report: Mapping[str, Any] = field(compare=False)
    """Its inputs and outputs as the Open Inference Protocol has them."""
    bytes: int = field(default=0, compare=False)
    """Memory that it took when it was loaded, in one process of this machine."""

    @property
    def stored(self) -> frozenset[Digest]:
        """See `Content.stored`."""
        return self.content.stored

    def described(self, model: str) -> dict[str, Any]:
        """The model as the Open Inference Protocol has it, under this name."""
        return {**self.report, "name": model, "versions": [short(self.digest)]}


class ModelsEngine:
    """What holds models and has them answer; a `GroupEngine`. Close it at the end."""

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
        self._held: dict[int, ModelHandle] = {}
        self._pools: dict[Kind, Pool] = {}
        self._promised = 0
        self._stem = ""
        """How the names of models begin."""

    async def start(self) -> None:
        """Be ready for the first model: processes start with it. Raises EngineStartFailed."""

    async def close(self) -> None:
        """Free all models and end all processes. Idempotent."""
        self._held.clear()
        pools, self._pools = [*self._pools.values()], {}
        await asyncio.gather(*(pool.close() for pool in pools))

    # -- a change of the group ---------------------------------------------------------------

    def check(self, content: Content) -> None:
        """See `fits`."""
        self.fits([content])

    def fits(self, contents: Iterable[Content]) -> None:
        """Refuse what, by its size on disk, does not fit in memory. Raises GroupImpossible."""
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
        """Load a model.

        Raises EngineLoadFailed, EngineStartFailed, EngineNotInstalled, GroupImpossible, EngineDead.
        """
        assert isinstance(content, ModelFiles), "the members of these groups are models"
        number = next(self._numbers)
        name = f"{self._stem}{short(content.digest)}-{number}"
        handle = self._held[number] = await self._load(content, name, number)
        return handle

    async def _load(self, content: ModelFiles, name: str, number: int) -> ModelHandle:
        self.fits([content])
        kind = Kind.of(content, self._user)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = Pool(kind, self._processes, self._abandoned)
        need = content.bytes * _TIMES * self._processes
        self._promised += need
        try:
            report = await pool.load(number, str(content.main or content.path))
        except BaseException:
            await asyncio.shield(self._close_unused(pool))
            raise
        finally:
            self._promised -= need
        platform = PLATFORMS.get(content.runtime, "python_score")
        described = {"platform": platform, **report["described"]}
        return ModelHandle(content.digest, name, number, content, described, report["bytes"])

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
            example = handle.content.path / EXAMPLE
            try:
                if example.is_file():
                    await self.infer(handle, example.read_bytes())
                else:
                    await self._try_zeros(handle)
            except StackedError as error:
                failed[digest] = CanaryFailed(f"it does not answer its canary: {error}")
            done(at)
        return failed

    async def _try_zeros(self, handle: ModelHandle) -> None:
        await self._call("try", handle)

    async def discard(self, *handles: ModelHandle) -> None:
        """Free these. Idempotent. Raises EngineError if one is still held."""
        gone = [held for each in handles if (held := self._held.pop(each.number, None))]
        for pool in {pool for each in gone if (pool := self._pool(each))}:
            await pool.unload(*(each.number for each in gone if self._pool(each) is pool))
            await self._close_unused(pool)

    async def remove(self, *handles: ModelHandle) -> None:
        """Free these, as `discard` does."""
        await self.discard(*handles)

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Loading has threads of its own."""
        yield

    async def _close_unused(self, pool: Pool) -> None:
        if not pool.models and self._pools.get(pool.kind) is pool:
            del self._pools[pool.kind]
            await pool.close()

    def _pool(self, handle: ModelHandle) -> Pool | None:
        return self._pools.get(Kind.of(handle.content, self._user))

    def _abandoned(self, number: int, reason: str) -> None:
        if held := self._held.get(number):
            self._give_up(held, reason)

    # -- requests ------------------------------------------------------------------------------

    def ready(self, handle: ModelHandle) -> bool:
        """Whether this model can answer now, as far as is known."""
        return bool(self._able(handle))

    async def infer(
        self, handle: ModelHandle, body: bytes, headers: Mapping[str, str] = {}, model: str = ""
    ) -> tuple[bytes, Mapping[str, str]]:
        """The answer to a request's body, which is JSON, and its headers.

        `headers`: the request's content type, and the length that binary tensors have. `model`: how
        the answer names the model.

        Raises ParameterInvalid, BodyInvalid, ModelError, EngineDead, NotReady.
        """
        named = {"model": model, "version": short(handle.digest)}
        kind = headers.get("content-type", "")
        return await self._call("answer", handle, body, type=kind, **named), {}

    async def _call(self, do: str, handle: ModelHandle, body: bytes = b"", **head: str) -> bytes:
        able = self._able(handle)
        if not able:
            raise NotReady(f"no process has model {handle.name} now; repeat later")
        worker = min(able, key=lambda each: each.waiting)
        return (await worker.call(do, self._deadline, body, handle.number, **head))[1]

    def _able(self, handle: ModelHandle) -> list[Worker]:
        """The processes that can answer for a model now."""
        pool = self._pool(handle)
        workers = pool.workers if pool else []
        return [worker for worker in workers if handle.number in worker.loaded]
