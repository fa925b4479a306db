"""What is served now, and the one place that changes it: add, remove, and the LIVE update.

The routing table is one immutable value behind one reference. Everything that can fail comes before
the reference is replaced; everything slow that follows touches only what no request uses any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from stacked import metrics
from stacked.config import Design
from stacked.core import Base, Content, Digest, Handle, Member, short
from stacked.errors import KeyInUse, StackedError, UpdateInProgress
from stacked.groups.leases import Lease, Leases
from stacked.groups.routing import NO_DESIGN, Route, Routing, UnitOf
from stacked.groups.swap import SwapPlan, plan_swap
from stacked.loader import GroupEngine, Loader
from stacked.phases import Clock, Journal
from stacked.steps import Phase

# How long a request that is ended may take to send its last bytes.
_LAST_WORDS_SECONDS = 10.0

H = TypeVar("H", bound=Handle)


class Admitted(NamedTuple, Generic[H]):
    """What one request got: its route, and the lease to release when it has ended."""

    route: Route[H]
    lease: Lease


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What an update did. Seconds by phase; `ended` requests had to be cut at the deadline.

    `left` are adapters that the engine failed to remove: they serve no request, but their memory is
    not free. The next update tries again.
    """

    generation: int
    loaded: tuple[Digest, ...]
    dropped: tuple[Digest, ...]
    seconds: Mapping[Phase, float]
    ended: int
    left: tuple[Digest, ...] = ()

    def __str__(self) -> str:
        return (
            f"generation {self.generation}: {len(self.loaded)} loaded, {len(self.dropped)} "
            f"dropped, {self.ended} requests ended at the deadline"
        )


class Live(Generic[H]):
    """The served group over one engine. Changes exclude each other; reading needs no lock."""

    def __init__(
        self, engine: GroupEngine[H], routing: Routing[H], *, drain_seconds: float
    ) -> None:
        self.routing, self._group = routing, frozenset(routing.members)
        self.leases: Leases[H | None] = Leases()
        self._engine = engine
        self._loader = Loader(engine)
        self._drain_seconds = drain_seconds
        self._changing = asyncio.Lock()
        # What the current change adds or drops: both are needed until it is over.
        self._in_change: frozenset[Digest] = frozenset()
        # Tasks that are not awaited; asyncio itself has only weak references.
        self._background: set[asyncio.Task[None]] = set()

    def begin(self, routing: Routing[H], group: Iterable[Member] | None = None) -> None:
        """Serve this from now on: a whole group, or what is left of one."""
        self._group = frozenset(routing.members if group is None else group)
        self._serve(routing)

    def _serve(self, routing: Routing[H]) -> None:
        self.routing = routing
        quarantined = {member.content.digest for member in self.quarantined}
        metrics.serving(routing.generation, len(routing.handles), len(quarantined))

    @property
    def quarantined(self) -> Mapping[Member, str]:
        """Members of the group that are not served, as the engine died with them, and why."""
        withheld = self.routing.withheld
        return {m: withheld[m.label] for m in self.removed if m.label in withheld}

    @property
    def lacking(self) -> Mapping[str, str]:
        """Model id -> why it is quarantined."""
        return {member.model_id: why for member, why in self.quarantined.items()}

    @property
    def removed(self) -> frozenset[Member]:
        """Members of the group that were removed one by one, or are quarantined."""
        return self._group.difference(self.routing.members)

    @property
    def in_use(self) -> frozenset[str]:
        """Digests of the base, and of what must stay in the stores.

        Those are routed, leased, in a change, removed alone, or still in the engine. From any
        thread; what is in use at the call is in the result.
        """
        # In this order: what a change moves meanwhile is found where it was or where it goes.
        changing, routing = self._in_change, self.routing
        removed = (member.content.stored for member in self.removed)
        handles = [*self.leases.things(), *self._loader.stuck, *routing.handles.values()]
        held = (each.stored for each in handles if each is not None)
        base = {routing.base.digest} if routing.base is not None else set()
        return frozenset[str](changing).union(base - {""}, *removed, *held)

    @asynccontextmanager
    async def _change(self, contents: Iterable[Content] = ()) -> AsyncIterator[None]:
        """Hold the place of the one change, which may add these."""
        async with self._changing:
            served = (handle.stored for handle in self.routing.handles.values())
            brought = (content.stored for content in contents)
            self._in_change = frozenset[Digest]().union(*served, *brought)
            try:
                yield
            finally:
                self._in_change = frozenset()

    # -- requests ---------------------------------------------------------------------------

    def admit(
        self,
        names: Mapping[str, str],
        end: Callable[..., object] | None = None,
        keys: frozenset[str] | None = None,
        unit: UnitOf = lambda kind: None,
    ) -> Admitted[H]:
        """Resolve the names of a request (place -> key or model id) and lease what they mean.

        `end` is called when the drain deadline has passed and the request still runs; `keys` is
        what its caller may use, None: all; `unit` is called if the name is an experiment's. Raises
        KeyUnknown, KeyConflict.
        """
        routing = self.routing.seen_by(keys)
        route = routing.resolve_all(names)
        if route.exposure is not None:
            route = routing.arms[route.exposure.experiment].draw(unit)
        # A route's adapter is what must outlive the request; the base always does.
        return Admitted(route, self.leases.take(route.handle, end))

    async def drain(self) -> int:
        """Wait for all requests; returns how many outlasted the drain time and were ended.

        Nothing may be admitted any more.
        """
        if await self.leases.until_all_free(self._drain_seconds):
            return 0
        ended = self.leases.end_all()
        await self.leases.until_all_free(_LAST_WORDS_SECONDS)
        return ended

    # -- one adapter ------------------------------------------------------------------------

    async def add(self, member: Member) -> Route[H]:
        """Serve one more member. Idempotent.

        Raises KeyInUse, CanaryFailed, EngineLoadFailed and other refusals of an adapter.
        """
        digest = member.content.digest
        async with self._change([member.content]):
            for other in self.routing.members:
                same = other.content.digest == digest
                if member.label in (other.key, other.model_id) and same:
                    return self.routing.resolve(member.label)
                # A model id means one content; a second key for the same content is fine.
                if other.model_id == member.model_id and not same:
                    raise KeyInUse(f"model {member.model_id} already has other content; remove it")
            staged: dict[Digest, H] = {}
            try:
                if digest not in self.routing.handles:
                    await self._bring_one(member.content, staged)
                handle = {**self.routing.handles, **staged}[digest]
                self._serve(self.routing.with_member(member, handle))
            except BaseException:
                await self._loader.let_go(staged.values())
                raise
            return self.routing.resolve(member.label)

    async def _bring_one(self, content: Content, staged: dict[Digest, H]) -> None:
        self._engine.check(content)
        async with self._engine.undisturbed():
            failed = await self._loader.stage([content], staged, _uncounted)
            failed = failed or {**await self._engine.verify(staged, _uncounted)}
        for error in failed.values():
            raise error

    async def remove(self, name: str, *, wait_seconds: float | None = None) -> bool:
        """Stop serving a key or model id; free its adapter when the last request has ended.

        True if the engine has removed it, False if requests still ran after `wait_seconds`
        (default: the drain time); it is then removed when the last of them ends. Raises KeyUnknown.
        """
        wait = self._drain_seconds if wait_seconds is None else wait_seconds
        async with self._change():
            before = self.routing
            after, gone = before.without(name)
            self._serve(after)
            unused = {m.content.digest for m in gone} - self.routing.handles.keys()
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

    async def _remove_when_free(self, handle: H, names: frozenset[str]) -> None:
        while not await self.leases.until_free(handle, 3600):
            pass
        await self._loader.let_go([handle])
        self.routing = self.routing.settled(names)

    def withhold(self, handle: H, why: str) -> None:
        """Quarantine what has this handle, once no change is under way."""
        self._later(self._withhold(handle, why))

    async def _withhold(self, handle: H, why: str) -> None:
        async with self._change():
            if self.routing.handles.get(handle.digest) != handle:
                return
            self._serve(self.routing.withholding(handle.digest, why))
        await self._remove_when_free(handle, frozenset())

    # -- the whole group --------------------------------------------------------------------

    def renumber(
        self, base: Base | None, members: Iterable[Member], design: Design, generation: int
    ) -> bool:
        """Have the served group be this generation, if it is this group; whether it is."""
        now = self.routing
        if (now.base, self._group, now.design) != (base, frozenset(members), design):
            return False
        if now.generation != generation:
            self._serve(now.numbered(generation))
        return True

    def check_free(self) -> None:
        """Raises UpdateInProgress while a change is under way."""
        if self._changing.locked():
            raise UpdateInProgress("another change of the group is under way; try again when done")

    async def update(
        self,
        base: Base | None,
        members: tuple[Member, ...],
        journal: Journal,
        design: Design = NO_DESIGN,
        judge: Callable[[Routing[H]], Awaitable[None]] | None = None,
        generation: int | None = None,
    ) -> SwapReport:
        """Replace the members by these, under traffic, all or nothing.

        `base` is the one that is served, perhaps under another key: a name loads nothing. `judge`
        gets the coming table when all of it is verified, and raises what the update fails with.
        `generation` is the table's; None: the next one.
        Until the switch the old group serves, and every failure leaves it serving with nothing
        staged. Raises UpdateInProgress, or what went wrong.
        """
        self.check_free()
        async with self._change(member.content for member in members):
            clock = Clock(journal)
            try:
                report = await self._update(base, members, design, clock, judge, generation)
            except BaseException as error:
                metrics.swap_ended("failed", {})
                clock.stop(error.code if isinstance(error, StackedError) else type(error).__name__)
                raise
            clock.stop()
            seconds = {phase.value: took for phase, took in report.seconds.items()}
            metrics.swap_ended("succeeded", seconds)
            return report

    async def _update(
        self,
        base: Base | None,
        members: tuple[Member, ...],
        design: Design,
        clock: Clock,
        judge: Callable[[Routing[H]], Awaitable[None]] | None,
        generation: int | None,
    ) -> SwapReport:
        before = self.routing
        plan = plan_swap(_contents(before.members), _contents(members))
        clock.enter(Phase.PLAN, str(plan))
        clock.refuse(self._loader.check(plan.load), "cannot be served LIVE")
        await self._loader.let_go(self._loader.stuck)
        staged: dict[Digest, H] = {}
        try:
            async with self._engine.undisturbed() if plan.load else nullcontext():
                await self._bring(plan.load, staged, clock)
            after = _table(base, members, design, before, staged, generation)
            if judge is not None:
                await judge(after)
            clock.enter(Phase.COMMIT, f"generation {after.generation}")
            # Once begun it is not cancelled: a commit that may have happened counts as done.
            await asyncio.shield(asyncio.ensure_future(clock.journal.commit(after.generation)))
        except BaseException:
            # A failed update leaves nothing in the engine.
            await self._loader.let_go(staged.values())
            raise
        self.begin(after)
        clock.enter(Phase.SWITCH, f"generation {after.generation} is live")
        ended = await self._drain(before, plan, clock)
        left = await self._drop(before, plan, clock)
        clock.enter(Phase.DONE, f"generation {after.generation} serves alone")
        return SwapReport(after.generation, tuple(staged), plan.drop, clock.seconds, ended, left)

    async def _bring(
        self, contents: Sequence[Content], staged: dict[Digest, H], clock: Clock
    ) -> None:
        """All of them, verified, or an error; those in `staged` must then be removed."""
        clock.enter(Phase.STAGE, f"{len(contents)} models")
        counts = clock.counts("staged", len(contents))
        failed = await self._loader.stage(contents, staged, counts)
        clock.refuse(failed, "could not be staged")
        clock.enter(Phase.VERIFY, f"{len(staged)} canaries")
        counts = clock.counts("verified", len(staged))
        clock.refuse(await self._engine.verify(staged, counts), "failed")

    async def _drain(self, before: Routing[H], plan: SwapPlan, clock: Clock) -> int:
        """Wait for the old group's requests; returns how many were ended at the deadline."""
        clock.enter(Phase.DRAIN, f"{len(plan.drop)} models")
        drained = clock.counts("drained", len(plan.drop))
        deadline = time.monotonic() + self._drain_seconds
        ended = 0
        for at, digest in enumerate(plan.drop, start=1):
            handle = before.handles[digest]
            if not await self.leases.until_free(handle, max(0.0, deadline - time.monotonic())):
                ended += self.leases.end(handle)
                await self.leases.until_free(handle, _LAST_WORDS_SECONDS)
            drained(at)
        return ended

    async def _drop(self, before: Routing[H], plan: SwapPlan, clock: Clock) -> tuple[Digest, ...]:
        """Remove unused adapters. What the engine still has is reported, not raised."""
        clock.enter(Phase.REMOVE, f"{len(plan.drop)} models")
        handles = [before.handles[digest] for digest in plan.drop]
        busy = [handle for handle in handles if self.leases.held(handle)]
        left: dict[Digest, object] = {handle.digest: "a request still uses it" for handle in busy}
        for handle in busy:
            self._later(self._remove_when_free(handle, frozenset()))
        left |= await self._loader.let_go(handle for handle in handles if handle not in busy)
        for digest, reason in left.items():
            clock.tell(0.0, f"{short(digest)} could not be removed: {reason}")
        self.routing = self.routing.settled(self.routing.draining)
        return tuple(left)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def close(self) -> None:
        """Stop waiting for requests; the engine is about to be stopped."""
        for task in self._background:
            task.cancel()


def _table(
    base: Base | None,
    members: tuple[Member, ...],
    design: Design,
    before: Routing[H],
    staged: Mapping[Digest, H],
    generation: int | None,
) -> Routing[H]:
    wanted = {member.content.digest for member in members}
    handles = {digest: h for digest, h in before.handles.items() if digest in wanted} | {**staged}
    draining = before.draining | _names(before.members) | before.design.keys
    if before.base is not None:
        draining |= {before.base.key}
    number = before.generation + 1 if generation is None else generation
    return Routing.of(base, members, handles, number, draining, design=design)


def _contents(members: Sequence[Member]) -> list[Content]:
    return list({member.content.digest: member.content for member in members}.values())


def _names(members: Iterable[Member]) -> frozenset[str]:
    return frozenset(n for m in members for n in (m.key, m.model_id) if n is not None)


def _uncounted(count: int) -> None: ...
