"""Loads contents into one engine and removes them: checked, staged, verified, removed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

from stacked.core import Content, Digest, Handle
from stacked.errors import EngineError, EngineLoadFailed, EngineSilent, StackedError

# How long cleaning up waits for one answer; an engine that is slower gets no further calls.
_UNDO_SECONDS = 60.0
# Adapters that are staged together, while they are small.
_AT_ONCE = 8
_BYTES_AT_ONCE = 8 * 1024**2

H = TypeVar("H", bound=Handle)

Count = Callable[[int], None]
"""Called with how many of something are done."""


class GroupEngine(Protocol[H]):
    """What a change of the group needs of an engine. vLLM's is `engine.checked.CheckedEngine`."""

    def check(self, content: Content, /) -> None:
        """Refuse what this engine cannot hold, before it is read."""

    async def stage(self, content: Content, /) -> H:
        """Read a content while others are served; no request can use it yet."""

    async def adopt(self, handle: H, /) -> None:
        """From now on requests may use it."""

    async def activate(self, handle: H, /) -> bool:
        """Put it where it is computed with, if there is room."""

    async def verify(
        self, staged: Mapping[Digest, H], done: Count
    ) -> Mapping[Digest, StackedError]:
        """Which of these do not answer correctly, and why.

        Raises CanaryFailed if the base then answers differently.
        """

    async def discard(self, *handles: H) -> None:
        """Drop adapters that were staged and not adopted. Idempotent, as `remove` is."""

    async def remove(self, *handles: H) -> None:
        """Remove adapters that were adopted."""

    def undisturbed(self) -> AbstractAsyncContextManager[None]:
        """Within the block, loading delays requests as little as possible."""


class Loader(Generic[H]):
    """Loads contents into one engine and removes them."""

    def __init__(self, engine: GroupEngine[H]) -> None:
        self._engine = engine
        self._stuck: dict[int, H] = {}

    @property
    def stuck(self) -> list[H]:
        """What the engine failed to remove. From any thread."""
        return list(self._stuck.values())

    def check(self, contents: Iterable[Content]) -> dict[Digest, StackedError]:
        """Which of these the engine cannot hold, and why; reads none of them."""
        failed: dict[Digest, StackedError] = {}
        for content in contents:
            try:
                self._engine.check(content)
            except StackedError as error:
                failed[content.digest] = error
        return failed

    async def stage(
        self, contents: Sequence[Content], staged: dict[Digest, H], done: Count
    ) -> dict[Digest, StackedError]:
        """Load these; returns which failed, and why. Every failure is reported unless the engine
        fails.

        Those that the engine has are in `staged`, also after an error or a cancellation.
        """
        failed: dict[Digest, StackedError] = {}
        count = 0
        for batch in _batches(contents):
            async with asyncio.TaskGroup() as tasks:
                brought = [tasks.create_task(self._bring(each, staged)) for each in batch]
            for content, task in zip(batch, brought, strict=True):
                if error := task.result():
                    failed[content.digest] = error
            count += len(batch)
            done(count)
            if any(map(is_the_engines, failed.values())):
                break
        return failed

    async def _bring(self, content: Content, staged: dict[Digest, H]) -> StackedError | None:
        try:
            handle = staged[content.digest] = await self._engine.stage(content)
            await self._engine.adopt(handle)
            await self._engine.activate(handle)
        except StackedError as error:
            return error
        return None

    async def let_go(self, handles: Iterable[H]) -> dict[Digest, StackedError]:
        """Have the engine drop these, staged or adopted; returns which it still has, and why.

        All at once, or one by one if that fails. An engine that is silent gets no further calls, as
        there may be hundreds.
        """
        loaded = {handle.number: handle for handle in handles}
        left: dict[int, StackedError] = {}
        pending = [[*loaded]] if loaded else []
        while pending:
            some = pending.pop(0)
            try:
                await self._forget(*(loaded[number] for number in some))
            except EngineSilent as error:
                left |= dict.fromkeys([*some, *itertools.chain(*pending)], error)
                break
            except StackedError as error:
                if len(some) > 1:
                    pending = [[number] for number in some]
                else:
                    left[some[0]] = error
        for number, handle in loaded.items():
            self._stuck.pop(number, None)
            if number in left:
                self._stuck[number] = handle
        return {loaded[number].digest: error for number, error in left.items()}

    async def _forget(self, *handles: H) -> None:
        """Raises EngineSilent, and StackedError if the engine still has them."""

        async def ask() -> None:
            await self._engine.discard(*handles)
            await self._engine.remove(*handles)

        task = asyncio.ensure_future(ask())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Shielded: the call may still be carried out after this has stopped waiting.
            await asyncio.wait_for(asyncio.shield(task), _UNDO_SECONDS)
        except TimeoutError as error:
            raise EngineSilent(f"no answer from the engine in {_UNDO_SECONDS:.0f} s") from error


def is_the_engines(error: StackedError) -> bool:
    """Whether the engine itself is at fault, so that the next adapter would also fail."""
    return isinstance(error, EngineError) and not isinstance(error, EngineLoadFailed)


def _batches(contents: Sequence[Content]) -> Iterator[list[Content]]:
    """In order, small ones together: each answer of a busy engine takes a step."""
    batch: list[Content] = []
    for content in contents:
        size = sum(each.bytes for each in batch) + content.bytes
        if batch and (len(batch) >= _AT_ONCE or size > _BYTES_AT_ONCE):
            yield batch
            batch = []
        batch.append(content)
    if batch:
        yield batch
