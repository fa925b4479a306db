"""What is served now, and the one place that changes it: add, remove, and the LIVE update.

The routing table is one immutable value behind one reference. Everything that can fail comes before
the reference is replaced; everything slow that follows touches only what no request uses any more.
It must not know wire formats, sources, or where records are kept.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from stacked.core import Adapter, Base, Digest, Member, short
from stacked.engine.cpu_affinity import yield_to_others
from stacked.engine.engine import Loaded
from stacked.errors import (
    CanaryFailed,
    EngineError,
    EngineLoadFailed,
    EngineSilent,
    KeyInUse,
    StackedError,
    UpdateFailed,
    UpdateInProgress,
)
from stacked.groups.leases import Lease, Leases
from stacked.groups.routing import Route, Routing
from stacked.groups.swap import SwapPlan, plan_swap
from stacked.steps import Phase
from stacked.store.verified import Verified

# Beside the float noise of the base itself: below this, an adapter changes nothing.
_LEAST_CHANGE = 1e-5
# Logprobs of the base move by less than this between batches, in bfloat16 too.
_MOST_DRIFT = 0.1
# Cleaning up waits this long for one answer; an engine that is slower than that is not asked more.
_UNDO_SECONDS = 60.0
# Adapters that are staged together, while they are small.
_AT_ONCE = 8
_BYTES_AT_ONCE = 8 * 1024**2
# Canaries of a start that are asked together, and the base among them.
_CANARIES_AT_ONCE = 32


class AdapterEngine(Protocol):
    """What an update needs of an engine; see `stacked.engine.engine.Engine`."""

    async def stage(self, adapter: Adapter) -> Loaded: ...
    async def adopt(self, loaded: Loaded) -> None: ...
    async def activate(self, loaded: Loaded) -> bool: ...
    async def discard(self, *loaded: Loaded) -> None: ...
    async def load(self, adapter: Adapter) -> Loaded: ...
    async def remove(self, *loaded: Loaded) -> None: ...
    async def canary(self, loaded: Loaded | None) -> Sequence[float]: ...
    def undisturbed(self) -> AbstractAsyncContextManager[None]: ...


class Journal(Protocol):
    """Who is told how an update goes, and makes it durable."""

    def step(self, step: Phase, done: float, detail: str) -> None:
        """See `stacked.steps.Progress`."""

    def refused(self, adapter: Digest, error: StackedError) -> None:
        """This adapter is why the update fails."""

    async def commit(self, generation: int) -> None:
        """Make the new group what a restart serves."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What one request was given: its route, and the lease to release when it has ended."""

    route: Route[Loaded]
    lease: Lease


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What an update did. Seconds by phase; `ended` requests had to be cut at the deadline.

    `left` are adapters that the engine would not let go of: nobody is served from them, but their
    memory is not back. The next update asks for it again.
    """

    generation: int
    loaded: tuple[Digest, ...]
    dropped: tuple[Digest, ...]
    seconds: Mapping[Phase, float]
    ended: int
    left: tuple[Digest, ...] = ()


class Live:
    """The served group over one engine. All changes take turns; reading needs no lock."""

    def __init__(
        self,
        engine: AdapterEngine,
        routing: Routing[Loaded],
        *,
        drain_seconds: float,
        check: Callable[[Adapter], None] | None = None,
        verified: Verified | None = None,
    ) -> None:
        """`check` refuses an adapter before the engine hears of it; in a thread of its own.

        `verified` remembers which adapters have passed their canary on such an engine.
        """
        self.begin(routing)
        self._check = check
        self._verified = verified
        self._checking = ThreadPoolExecutor(1, "stacked-check", initializer=yield_to_others)
        self.leases = Leases()
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._changing = asyncio.Lock()
        # What the engine did not let go of when it was asked to.
        self._stuck: dict[int, Loaded] = {}
        # What the change that is under way adds or drops: both are needed until it is over.
        self._in_change: frozenset[Digest] = frozenset()
        # Tasks that nobody awaits; asyncio itself keeps only weak references.
        self._background: set[asyncio.Task[None]] = set()

    def begin(self, routing: Routing[Loaded]) -> None:
        """Serve this, which is a whole group, from now on."""
        self.routing, self._group = routing, frozenset(routing.members)

    @property
    def removed(self) -> frozenset[Member]:
        """Members of the group that were removed one by one and have not come back."""
        return self._group.difference(self.routing.members)

    @property
    def in_use(self) -> frozenset[Digest]:
        """Adapters that must stay in the store: routed, leased, in a change, or removed alone.

        From any thread. What is in use when it is asked for is in the answer.
        """
        # In this order: what a change moves meanwhile is found where it was or where it goes.
        changing, routing = self._in_change, self.routing
        removed = (member.adapter.digest for member in self.removed)
        handles = [*self.leases.things(), *self._stuck.values()]
        held = (each.digest for each in handles if isinstance(each, Loaded))
        return changing.union(routing.handles, removed, held)

    @asynccontextmanager
    async def _change(self, adapters: Iterable[Adapter] = ()) -> AsyncIterator[None]:
        """Hold the place of the one change, which may bring these."""
        async with self._changing:
            brought = (adapter.digest for adapter in adapters)
            self._in_change = frozenset(self.routing.handles).union(brought)
            try:
                yield
            finally:
                self._in_change = frozenset()

    # -- requests ---------------------------------------------------------------------------

    def admit(self, names: Mapping[str, str], end: Callable[[], None] | None = None) -> Admission:
        """Resolve the names of a request (place -> key or model id) and lease what they mean.

        `end` is called when the drain deadline has passed and the request still runs. Raises
        KeyUnknown, KeyConflict.
        """
        route = self.routing.resolve_all(names)
        # A route's adapter is what must outlive the request; the base always does.
        return Admission(route, self.leases.take(route.handle, end))

    # -- one adapter ------------------------------------------------------------------------

    async def add(self, member: Member) -> Route[Loaded]:
        """Serve one more member. Asking again for what is there is answered with it.

        Raises KeyInUse, EngineLoadFailed.
        """
        async with self._change([member.adapter]):
            for other in self.routing.members:
                same = other.adapter.digest == member.adapter.digest
                if member.label in (other.key, other.model_id) and same:
                    return self.routing.resolve(member.label)
                # A model id means one content; a second key for the same content is fine.
                if other.model_id == member.model_id and not same:
                    raise KeyInUse(f"model {member.model_id} already has other content; remove it")
            present = self.routing.handles.get(member.adapter.digest)
            loaded = present or await self._bring_one(member.adapter)
            try:
                self.routing = self.routing.with_member(member, loaded)
            except StackedError:
                if present is None:
                    await self._engine.remove(loaded)
                raise
            return self.routing.resolve(member.label)

    async def _bring_one(self, adapter: Adapter) -> Loaded:
        """Load one adapter and see that it acts; nothing of it is left where it does not."""
        loaded = await self._engine.load(adapter)
        try:
            async with self._engine.undisturbed():
                base, noise = await self._base_canary()
                check_canary(loaded.digest, await self._engine.canary(loaded), base, noise=noise)
        except BaseException:
            await self._let_go([loaded])
            raise
        await self._remember([loaded.digest])
        return loaded

    async def verify(self, loaded: Iterable[Loaded]) -> Mapping[Digest, StackedError]:
        """Canaries of adapters that nobody uses yet, many at once: for a start. Why each failed.

        Those that have passed before on such an engine are not asked again. Raises EngineError
        where the engine itself is at fault.
        """
        known = self._verified if self._verified is not None else ()
        unknown = [each for each in loaded if each.digest not in known]
        if not unknown:
            return {}
        failed: dict[Digest, StackedError] = {}
        _, noise = await self._base_canary()
        for at in range(0, len(unknown), _CANARIES_AT_ONCE):
            some = unknown[at : at + _CANARIES_AT_ONCE]
            # The base in their midst: in a batch of another size its numbers move a little.
            base, *answers = await asyncio.gather(
                *(self._engine.canary(each) for each in (None, *some))
            )
            for each, answer in zip(some, answers, strict=True):
                try:
                    check_canary(each.digest, answer, base, noise=noise)
                except StackedError as error:
                    failed[each.digest] = error
        await self._remember([each.digest for each in unknown if each.digest not in failed])
        return failed

    async def _base_canary(self) -> tuple[Sequence[float], float]:
        """How the base answers, and how far two such answers lie apart."""
        base = await self._engine.canary(None)
        return base, _distance(base, await self._engine.canary(None))

    async def _remember(self, digests: Sequence[Digest]) -> None:
        """Write it down in the thread of the checks: a slow disk must not hold up the loop."""
        if self._verified is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._checking, self._verified.add, digests)

    async def remove(self, name: str, *, wait_seconds: float | None = None) -> bool:
        """Stop serving a key or model id; free its adapter when the last request has ended.

        True when the engine has let go of it, False when requests still ran after `wait_seconds`
        (default: the drain time); it is then removed when the last of them ends. Raises KeyUnknown.
        """
        wait = self._drain_seconds if wait_seconds is None else wait_seconds
        async with self._change():
            before = self.routing
            self.routing, gone = before.without(name)
            unused = {m.adapter.digest for m in gone} - self.routing.handles.keys()
            handles = [before.handles[digest] for digest in unused]
            names = _names(gone)
        freed = True
        for handle in handles:
            if await self.leases.until_free(handle, wait):
                await self._engine.remove(handle)
            else:
                freed = False
                self._later(self._remove_when_free(handle, names))
        if freed:
            self.routing = self.routing.settled(names)
        return freed

    async def _remove_when_free(self, handle: Loaded, names: frozenset[str]) -> None:
        while not await self.leases.until_free(handle, 3600):
            pass
        await self._let_go([handle])
        self.routing = self.routing.settled(names)

    # -- the whole group --------------------------------------------------------------------

    def check_free(self) -> None:
        """Raises UpdateInProgress while a change is under way."""
        if self._changing.locked():
            raise UpdateInProgress("another change of the group is under way; try again when done")

    async def update(self, base: Base, members: tuple[Member, ...], journal: Journal) -> SwapReport:
        """Replace the members by these, under traffic, all or nothing.

        `base` is the one that is served, perhaps under another key: a name loads nothing.
        Until the switch the old group serves, and every failure leaves it serving with nothing
        staged. Raises UpdateInProgress, or what went wrong.
        """
        self.check_free()
        async with self._change(member.adapter for member in members):
            clock = _Clock(journal)
            before = self.routing
            plan = plan_swap(_adapters(before.members), _adapters(members))
            clock.enter(Phase.PLAN, _told(plan))
            await self._let_go(self._stuck.values())
            staged: dict[Digest, Loaded] = {}
            try:
                async with self._engine.undisturbed():
                    await self._stage(plan, staged, clock)
                    await self._verify(plan, staged, clock)
                after = self._table(base, members, before, staged)
                clock.enter(Phase.COMMIT, f"generation {after.generation}")
                # Once begun it is not given up: a commit that may have happened has happened.
                await asyncio.shield(asyncio.ensure_future(journal.commit(after.generation)))
            except BaseException:
                # A failed update leaves nothing in the engine.
                await self._let_go(staged.values())
                raise
            self.begin(after)
            clock.enter(Phase.SWITCH, f"generation {after.generation} is live")
            ended = await self._drain(before, plan, clock)
            left = await self._drop(before, plan, clock)
            clock.enter(Phase.DONE, f"generation {after.generation} serves alone")
            return SwapReport(
                after.generation, tuple(staged), plan.drop, clock.seconds, ended, left
            )

    async def _stage(self, plan: SwapPlan, staged: dict[Digest, Loaded], clock: _Clock) -> None:
        """Read every new adapter beside the engine's loop; all are tried, so that all are told."""
        clock.enter(Phase.STAGE, f"{len(plan.load)} adapters")
        failed: list[str] = []
        done = 0
        for batch in _batches(plan.load):
            async with asyncio.TaskGroup() as tasks:
                brought = [tasks.create_task(self._bring(each, staged)) for each in batch]
            errors = {a.digest: task.result() for a, task in zip(batch, brought, strict=True)}
            for digest, error in errors.items():
                if error is not None:
                    clock.journal.refused(digest, error)
                    failed.append(f"{short(digest)}: {error}")
            done += len(batch)
            clock.tell(done / len(plan.load), f"staged {done} of {len(plan.load)}")
            if any(error is not None and _is_the_engines(error) for error in errors.values()):
                break
        if failed:
            raise UpdateFailed(f"{len(failed)} adapters could not be staged: {'; '.join(failed)}")

    async def _bring(self, adapter: Adapter, staged: dict[Digest, Loaded]) -> StackedError | None:
        """Bring one adapter into the engine; why that failed."""
        try:
            if self._check is not None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._checking, self._check, adapter)
            loaded = staged[adapter.digest] = await self._engine.stage(adapter)
            await self._engine.adopt(loaded)
            await self._engine.activate(loaded)
        except StackedError as error:
            return error
        return None

    async def _verify(self, plan: SwapPlan, staged: Mapping[Digest, Loaded], clock: _Clock) -> None:
        """Canaries: each new adapter differs from the base and is finite; the base is unchanged."""
        clock.enter(Phase.VERIFY, f"{len(staged)} canaries")
        base, noise = await self._base_canary()
        failed: list[str] = []
        for at, (digest, loaded) in enumerate(staged.items(), start=1):
            try:
                check_canary(digest, await self._engine.canary(loaded), base, noise=noise)
            except StackedError as error:
                clock.journal.refused(digest, error)
                failed.append(f"{short(digest)}: {error}")
                if _is_the_engines(error):
                    raise
            clock.tell(at / len(staged), f"verified {at} of {len(staged)}")
        again = await self._engine.canary(None)
        if not _distance(base, again) <= max(_MOST_DRIFT, 4 * noise):  # NaN is drift too
            raise CanaryFailed("the base answers differently beside the new adapters")
        if failed:
            raise UpdateFailed(f"{len(failed)} adapters failed: {'; '.join(failed)}")
        await self._remember([*staged])

    def _table(
        self,
        base: Base,
        members: tuple[Member, ...],
        before: Routing[Loaded],
        staged: Mapping[Digest, Loaded],
    ) -> Routing[Loaded]:
        wanted = {member.adapter.digest for member in members}
        handles = {digest: h for digest, h in before.handles.items() if digest in wanted} | {
            **staged
        }
        draining = before.draining | _names(before.members) | {before.base.key}
        return Routing.of(base, members, handles, before.generation + 1, draining)

    async def _drain(self, before: Routing[Loaded], plan: SwapPlan, clock: _Clock) -> int:
        """Wait for the old group's requests; how many outlasted the deadline and were ended."""
        clock.enter(Phase.DRAIN, f"{len(plan.drop)} adapters")
        deadline = time.monotonic() + self._drain_seconds
        ended = 0
        for at, digest in enumerate(plan.drop, start=1):
            handle = before.handles[digest]
            if not await self.leases.until_free(handle, max(0.0, deadline - time.monotonic())):
                ended += self.leases.end(handle)
                await self.leases.until_free(handle, _UNDO_SECONDS)
            clock.tell(at / len(plan.drop), f"drained {at} of {len(plan.drop)}")
        return ended

    async def _drop(
        self, before: Routing[Loaded], plan: SwapPlan, clock: _Clock
    ) -> tuple[Digest, ...]:
        """Remove what nobody uses. What the engine keeps is told: the new group serves already."""
        clock.enter(Phase.REMOVE, f"{len(plan.drop)} adapters")
        handles = [before.handles[digest] for digest in plan.drop]
        busy = [handle for handle in handles if self.leases.held(handle)]
        left = {handle.digest: "a request still uses it" for handle in busy}
        for handle in busy:
            self._later(self._remove_when_free(handle, frozenset()))
        free = await self._let_go(handle for handle in handles if handle not in busy)
        left |= {digest: str(error) for digest, error in free.items()}
        for digest, reason in left.items():
            clock.tell(0.0, f"{short(digest)} could not be removed: {reason}")
        self.routing = self.routing.settled(self.routing.draining)
        return tuple(left)

    async def _let_go(self, handles: Iterable[Loaded]) -> dict[Digest, StackedError]:
        """Have the engine forget these, staged or adopted; which it still has, and why.

        All are asked for at once, and one by one where that fails. The next update asks for those
        again. An engine that is silent is asked no more: there may be hundreds.
        """
        loaded = list(handles)
        last = await self._forget(*loaded) if loaded else None
        left: dict[Digest, StackedError] = {}
        for each in loaded:
            asked = last is None or len(loaded) == 1 or isinstance(last, EngineSilent)
            error = last if asked else await self._forget(each)
            if error is None:
                self._stuck.pop(each.number, None)
            else:
                left[each.digest] = last = error
                self._stuck[each.number] = each
        return left

    async def _forget(self, *loaded: Loaded) -> StackedError | None:
        """Why the engine still has some of them; None where it has not."""

        async def ask() -> None:
            await self._engine.discard(*loaded)
            await self._engine.remove(*loaded)

        task = asyncio.ensure_future(ask())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Shielded: what was asked may still be done when nobody waits for it any more.
            await asyncio.wait_for(asyncio.shield(task), _UNDO_SECONDS)
        except TimeoutError:
            return EngineSilent(f"no answer from the engine in {_UNDO_SECONDS:.0f} s")
        except StackedError as error:
            return error
        return None

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def close(self) -> None:
        """Give up waiting for what still drains; the engine is about to go."""
        self._checking.shutdown(wait=False, cancel_futures=True)
        for task in self._background:
            task.cancel()


def check_canary(
    digest: Digest, answer: Sequence[float], base: Sequence[float], *, noise: float
) -> None:
    """Raises CanaryFailed when an adapter's logprobs are not finite or are the base's.

    `noise` is how far the base's own logprobs lie apart when it is asked twice.
    """
    if not all(math.isfinite(value) for value in answer):
        raise CanaryFailed(f"adapter {short(digest)} answers with values that are not finite")
    if _distance(answer, base) <= max(_LEAST_CHANGE, noise):
        raise CanaryFailed(
            f"adapter {short(digest)} changes nothing: it answers as the base does. "
            "Was it trained, and for this base?"
        )


def _is_the_engines(error: StackedError) -> bool:
    """Whether the engine itself is at fault: then the next adapter would fare no better."""
    return isinstance(error, EngineError) and not isinstance(error, EngineLoadFailed)


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)


def _adapters(members: Sequence[Member]) -> list[Adapter]:
    return list({member.adapter.digest: member.adapter for member in members}.values())


def _batches(adapters: Sequence[Adapter]) -> Iterator[list[Adapter]]:
    """In order, small adapters together: each answer of a busy engine takes a step."""
    batch: list[Adapter] = []
    for adapter in adapters:
        full = (
            len(batch) >= _AT_ONCE or sum(a.bytes for a in batch) + adapter.bytes > _BYTES_AT_ONCE
        )
        if batch and full:
            yield batch
            batch = []
        batch.append(adapter)
    if batch:
        yield batch


def _names(members: Iterable[Member]) -> frozenset[str]:
    return frozenset(n for m in members for n in (m.key, m.model_id) if n is not None)


def _told(plan: SwapPlan) -> str:
    return f"{len(plan.load)} to load, {len(plan.keep)} to keep, {len(plan.drop)} to drop"


class _Clock:
    """Which phase an update is in, since when, and telling the journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.seconds: dict[Phase, float] = {}
        self._phase: Phase | None = None
        self._since = time.monotonic()

    def enter(self, phase: Phase, text: str) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self.seconds[self._phase] = now - self._since
        self._phase, self._since = phase, now
        self.journal.step(phase, 0.0, text)

    def tell(self, done: float, text: str) -> None:
        assert self._phase is not None
        self.journal.step(self._phase, done, text)
