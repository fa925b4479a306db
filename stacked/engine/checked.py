"""The engine of a served group: an `Engine` whose adapters are always checked first.

Before an adapter is read: its rank, its files, and that the base has all of its modules. Before a
request reaches it: its canary.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from stacked.core import Adapter, Content, Digest, short
from stacked.engine.adaptable import Asking
from stacked.engine.cpu_affinity import Pauses, yield_to_others
from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded
from stacked.errors import CanaryFailed, EngineError, EngineLoadFailed, RankRefused, StackedError
from stacked.store.checks import check_stored, modules_of
from stacked.store.verified import Verified

# Above the base's own floating-point noise: with less, an adapter changes nothing.
_LEAST_CHANGE = 1e-5
# Logprobs of the base move by less than this between batches, in bfloat16 too.
_MOST_DRIFT = 0.1
# Requests of a start's canaries that run at once, the base's included.
_CANARIES_AT_ONCE = 32

# Of a canary, on each engine by rank.
Scores = Sequence[Sequence[float]]


class CheckedEngine:
    """vLLM's `stacked.live.GroupEngine`."""

    def __init__(self, engine: Engine, asking: Asking, verified: Verified) -> None:
        """`verified` remembers which adapters have passed their canary on such an engine."""
        self._engine = engine
        self._asking = asking
        self._verified = verified
        self._checking = ThreadPoolExecutor(1, "stacked-check", initializer=yield_to_others)
        self.adopt, self.activate = engine.adopt, engine.activate
        self.discard, self.remove = engine.discard, engine.remove
        self.undisturbed = engine.undisturbed

    def check(self, content: Content) -> None:
        """Raises RankRefused: an engine's rank is fixed when it starts."""
        adapter = Adapter.of(content)
        most = self._engine.plan.max_rank
        if adapter.rank > most:
            raise RankRefused(
                f"adapter {short(adapter.digest)} has rank {adapter.rank}, and this engine takes "
                f"{most}; set engine.max_lora_rank and restart, or update with updateType ZDT"
            )

    async def stage(self, content: Content) -> Loaded:
        """See `Engine.stage`. Raises StoreDamaged, ModuleUnapplied, ValueTooLarge too."""
        adapter = Adapter.of(content)
        await self._in_thread(self._check_content, adapter)
        return await self._engine.stage(adapter)

    def _check_content(self, adapter: Adapter) -> None:
        check_stored(adapter, Pauses())
        self._asking.ask().check(modules_of(adapter))

    async def verify(
        self, staged: Mapping[Digest, Loaded], done: Callable[[int], None]
    ) -> Mapping[Digest, StackedError]:
        """Canaries of adapters during requests, one by one. Raises CanaryFailed for the base."""
        if not staged:  # other keys or weights: the engine is as it was
            return {}
        base, noise = await self._base_canary()
        failed: dict[Digest, StackedError] = {}
        for at, (digest, loaded) in enumerate(staged.items(), start=1):
            try:
                check_canary(digest, await self._engine.canary(loaded), base, noise=noise)
            except EngineLoadFailed as error:
                failed[digest] = error
            except EngineError as error:  # the next one would get no answer either
                return {**failed, digest: error}
            except StackedError as error:
                failed[digest] = error
            done(at)
        again = await self._engine.canary(None)
        if not _distance(base, again) <= max(_MOST_DRIFT, 4 * noise):  # NaN is drift too
            raise CanaryFailed("the base answers differently with the new adapters loaded")
        await self._remember(staged.keys() - failed)
        return failed

    async def verify_at_start(self, loaded: Iterable[Loaded]) -> Mapping[Digest, StackedError]:
        """Many canaries at once, before any request; adapters that passed before are skipped.

        Raises EngineError if the engine itself is at fault.
        """
        unknown = [each for each in loaded if each.digest not in self._verified]
        if not unknown:
            return {}
        failed: dict[Digest, StackedError] = {}
        _, noise = await self._base_canary()
        for at in range(0, len(unknown), _CANARIES_AT_ONCE):
            some = unknown[at : at + _CANARIES_AT_ONCE]
            self._engine.suspects = frozenset(each.digest for each in some)
            # The base in the same batch: in one of another size its numbers differ slightly.
            base, *answers = await asyncio.gather(
                *(self._engine.canary(each) for each in (None, *some))
            )
            for each, answer in zip(some, answers, strict=True):
                try:
                    check_canary(each.digest, answer, base, noise=noise)
                except CanaryFailed as error:
                    failed[each.digest] = error
        self._engine.suspects = frozenset()
        await self._remember({each.digest for each in unknown} - failed.keys())
        return failed

    def close(self) -> None:
        """Cancel the checks that wait. Closing twice is allowed."""
        self._checking.shutdown(wait=False, cancel_futures=True)

    async def _base_canary(self) -> tuple[Scores, float]:
        """How the base answers, and how far two such answers differ."""
        base = await self._engine.canary(None)
        return base, _distance(base, await self._engine.canary(None))

    async def _remember(self, digests: set[Digest]) -> None:
        await self._in_thread(self._verified.add, digests)

    async def _in_thread(self, call: Callable[..., None], given: object) -> None:
        """In the checks' thread, as a slow disk must not block the loop."""
        await asyncio.get_running_loop().run_in_executor(self._checking, call, given)


def check_canary(digest: Digest, answer: Scores, base: Scores, *, noise: float) -> None:
    """Raises CanaryFailed when an adapter's logprobs are not finite or are the base's.

    On any engine. `noise` is how far the base's own logprobs differ between two runs.
    """
    for engine, (own, of_base) in enumerate(zip(answer, base, strict=True)):
        name = f"adapter {short(digest)}" + (f" on engine {engine}" if len(base) > 1 else "")
        if not all(map(math.isfinite, own)):
            raise CanaryFailed(f"{name} answers with values that are not finite")
        if _distance([own], [of_base]) <= max(_LEAST_CHANGE, noise):
            raise CanaryFailed(
                f"{name} changes nothing: it answers as the base does. "
                "Was it trained, and for this base?"
            )


def _distance(one: Scores, other: Scores) -> float:
    """The most that a logprob differs on any engine; NaN where one is."""
    engines = zip(one, other, strict=True)
    found = [abs(a - b) for each in engines for a, b in zip(*each, strict=True)]
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)
