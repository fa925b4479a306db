"""The LIVE update over a deterministic engine with gates: orders a real one cannot be steered to.

The real engine has its own tests; this double replaces none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from stacked import live as live_module
from stacked import loader
from stacked.config import ArmConfig, Design, ExperimentConfig
from stacked.core import Content, Digest, Member
from stacked.engine.loaded import Loaded, Resident
from stacked.errors import (
    CanaryFailed,
    EngineError,
    EngineLoadFailed,
    EngineSilent,
    KeyRemoved,
    KeyUnknown,
    RankRefused,
    StackedError,
    UpdateFailed,
    UpdateInProgress,
)
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.steps import Phase
from tests.groups.test_routing import BASE, adapter, member
from tests.waiting import until_async


class FakeEngine:
    """Holds adapters by number; `gate` holds the next stage, `fails` says what goes wrong where."""

    def __init__(self) -> None:
        self.held: dict[int, Digest] = {}
        self.staged: dict[int, Digest] = {}
        self.calls: list[str] = []
        self.fails: dict[str, StackedError] = {}
        self.gate: asyncio.Event | None = None
        self.refuses: dict[Digest, StackedError] = {}
        """By digest, what `check` raises for it."""
        self.wrong: dict[Digest, StackedError] = {}
        """By digest, what `verify` finds."""
        self.dead = False
        self.closed = False
        self._number = 0

    def handle(self, digest: Digest) -> Loaded:
        self._number += 1
        return Loaded(digest, f"{digest}.{self._number}", self._number, cast("Any", None))

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise self.fails[call]

    async def stage(self, one: Content) -> Loaded:
        if self.gate is not None:
            await self.gate.wait()
        self._enter("stage")
        loaded = self.handle(one.digest)
        self.staged[loaded.number] = one.digest
        return loaded

    async def adopt(self, loaded: Loaded) -> None:
        self._enter("adopt")
        self.held[loaded.number] = self.staged.pop(loaded.number)

    async def activate(self, loaded: Loaded) -> bool:
        self._enter("activate")
        return True

    async def discard(self, *loaded: Loaded) -> None:
        for each in loaded:
            self.staged.pop(each.number, None)

    async def load(self, one: Content) -> Loaded:
        loaded = await self.stage(one)
        await self.adopt(loaded)
        return loaded

    async def remove(self, *loaded: Loaded) -> None:
        self._enter("remove")
        for each in loaded:
            self.held.pop(each.number, None)

    def check(self, one: Content) -> None:
        if one.digest in self.refuses:
            raise self.refuses[one.digest]

    async def verify(
        self, staged: Mapping[Digest, Loaded], done: Callable[[int], None]
    ) -> Mapping[Digest, StackedError]:
        self._enter("verify")
        for at in range(len(staged)):
            done(at + 1)
        return {digest: error for digest, error in self.wrong.items() if digest in staged}

    async def resident(self) -> Resident:
        return Resident(frozenset(), frozenset(self.held), ())

    async def close(self) -> None:
        self.closed = True

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        yield


class Notes:
    """A journal that keeps what it is told; `broken` is raised by the commit."""

    def __init__(self, broken: StackedError | None = None) -> None:
        self.phases: list[Phase] = []
        self.blamed: list[Digest] = []
        self.committed: list[int] = []
        self.broken = broken

    def step(self, step: Phase, done: float, detail: str) -> None:
        if not self.phases or self.phases[-1] is not step:
            self.phases.append(step)

    def refused(self, adapter: Digest, error: StackedError) -> None:
        self.blamed.append(adapter)

    async def commit(self, generation: int) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise self.broken
        self.committed.append(generation)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


async def serving(engine: FakeEngine, *members: Member, drain: float = 5) -> Live:
    handles = {m.content.digest: await engine.load(m.content) for m in members}
    engine.calls.clear()
    return Live(engine, Routing.of(BASE, members, handles), drain_seconds=drain)


async def switched(live: Live) -> None:
    """Return after the update's switch."""
    await until_async(lambda: live.routing.generation == 2)


def digest(number: int) -> Digest:
    return adapter(number).digest


async def test_update_goes_through_its_phases_and_leaves_only_the_new_group(
    engine: FakeEngine,
) -> None:
    live = await serving(engine, member("a", 1), member("b", 2))
    notes = Notes()
    report = await live.update(BASE, (member("a", 3), member("b2", 2)), notes)
    assert notes.phases == list(Phase)
    assert notes.committed == [2] == [report.generation]
    assert report.loaded == (digest(3),)
    assert report.dropped == (digest(1),)
    assert sorted(engine.held.values()) == sorted([digest(2), digest(3)])
    assert not engine.staged
    assert live.routing.resolve("a").digest == digest(3)
    assert live.routing.resolve("b2").digest == digest(2)
    with pytest.raises(KeyUnknown):
        live.routing.resolve("b")


async def test_renamed_key_loads_nothing_and_keeps_its_handle(engine: FakeEngine) -> None:
    live = await serving(engine, member("old", 1))
    handle = live.routing.resolve("old").handle
    await live.update(BASE, (member("new", 1),), Notes())
    assert "stage" not in engine.calls
    assert live.routing.resolve("new").handle is handle


async def test_another_split_of_an_experiment_asks_the_engine_nothing(engine: FakeEngine) -> None:
    members = (member("a", 1), member("b", 2))
    live = await serving(engine, *members)
    for weights in ((50, 50), (60, 40)):
        arms = tuple(ArmConfig(key=key, weight=w) for key, w in zip("ab", weights, strict=True))
        design = Design(experiments=(ExperimentConfig(key="sql", arms=arms),))
        engine.calls.clear()
        notes = Notes()
        report = await live.update(BASE, members, notes, design)
        assert set(engine.calls) <= {"verify"}
        assert (report.loaded, report.dropped) == ((), ())
        assert live.routing.arms["sql"].split.shares == {
            "a": weights[0] / 100,
            "b": weights[1] / 100,
        }
    lease = live.admit({"body": "sql"}, unit=lambda kind: "u").lease
    ended = asyncio.create_task(live.update(BASE, (), Notes()))
    await until_async(lambda: live.routing.generation == 4)
    with pytest.raises(KeyRemoved):
        live.admit({"body": "sql"})
    lease.release()
    await ended
    with pytest.raises(KeyUnknown):
        live.admit({"body": "sql"})


async def test_renamed_base_loads_nothing_and_its_old_key_drains(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 0), member("b", 1))
    lease = live.admit({"key": "b"}).lease
    renamed = replace(BASE, key="new")
    update = asyncio.create_task(live.update(renamed, (member("a", 0),), Notes()))
    await switched(live)
    assert live.routing.resolve("new").handle is None
    assert live.routing.resolve(None).label == live.routing.resolve(BASE.model_id).label == "new"
    with pytest.raises(KeyRemoved):
        live.admit({"body.model": BASE.key})
    lease.release()
    assert (await update).loaded == ()
    with pytest.raises(KeyUnknown):
        live.admit({"body.model": BASE.key})


async def test_base_and_fine_tune_can_exchange_their_keys(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 0))
    await live.update(replace(BASE, key="a"), (member(BASE.key, 0),), Notes())
    assert live.routing.resolve("a").handle is None
    assert live.routing.resolve(BASE.key).digest == digest(0)


async def test_request_that_began_before_the_switch_keeps_its_adapter_until_it_ends(
    engine: FakeEngine,
) -> None:
    live = await serving(engine, member("a", 1))
    old, notes = live.admit({"key": "a"}), Notes()
    updating = asyncio.create_task(live.update(BASE, (member("a", 2),), notes))
    await switched(live)
    assert live.admit({"key": "a"}).route.digest == digest(2)
    await until_async(lambda: notes.phases[-1] is Phase.DRAIN)
    assert digest(1) in engine.held.values()
    assert not updating.done()
    old.lease.release()
    await updating
    assert digest(1) not in engine.held.values()


async def test_removed_key_drains_and_is_then_unknown(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1), member("b", 2))
    lease = live.admit({"key": "b"}).lease
    updating = asyncio.create_task(live.update(BASE, (member("a", 1),), Notes()))
    await switched(live)
    with pytest.raises(KeyRemoved):
        live.admit({"key": "b"})
    lease.release()
    await updating
    with pytest.raises(KeyUnknown):
        live.admit({"key": "b"})


async def test_what_was_removed_of_the_group_is_known_until_it_is_back(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1), member("b", 2))
    await live.add(member("alone", 3))
    await live.remove("alone")
    assert live.removed == frozenset()
    await live.remove("b")
    assert live.removed == {member("b", 2)}
    await live.add(member("b", 2))
    assert live.removed == frozenset()
    await live.remove("b")
    await live.update(BASE, (member("a", 1),), Notes())
    assert live.removed == frozenset()


async def test_what_is_in_use_is_routed_leased_staged_or_removed_alone(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1), member("b", 2), member("c", 3))
    assert live.in_use == {digest(1), digest(2), digest(3)}
    lease = live.admit({"key": "b"}).lease
    await live.remove("c")
    assert live.in_use == {digest(1), digest(2), digest(3)}, "c may be asked for again"
    engine.gate = asyncio.Event()
    update = asyncio.create_task(live.update(BASE, (member("a", 4),), Notes()))
    await asyncio.sleep(0)
    assert live.in_use == {digest(1), digest(2), digest(3), digest(4)}
    engine.gate.set()
    await switched(live)
    assert live.in_use >= {digest(2), digest(4)}
    lease.release()
    await update
    assert live.in_use == {digest(4)}
    assert live.leases.things() == []


async def test_what_a_failed_update_staged_is_not_in_use(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.fails["adopt"] = EngineLoadFailed("broken")
    with pytest.raises(UpdateFailed):
        await live.update(BASE, (member("a", 2),), Notes())
    assert live.in_use == {digest(1)}


async def test_what_the_engine_did_not_let_go_of_is_in_use(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.fails["remove"] = EngineLoadFailed("busy")
    await live.update(BASE, (member("a", 2),), Notes())
    assert live.in_use == {digest(1), digest(2)}


async def test_request_past_the_deadline_is_ended(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1), drain=0)
    ended: list[str] = []

    def end() -> None:
        ended.append("asked")
        admission.lease.release()

    admission = live.admit({"key": "a"}, end)
    report = await live.update(BASE, (member("a", 2),), Notes())
    assert ended == ["asked"]
    assert report.ended == 1
    assert digest(1) not in engine.held.values()


@pytest.mark.parametrize("call", ["stage", "adopt", "activate", "verify"])
async def test_failure_before_the_switch_leaves_the_old_group_and_nothing_else(
    engine: FakeEngine, call: str
) -> None:
    live = await serving(engine, member("a", 1))
    held = dict(engine.held)
    before = live.routing
    engine.fails[call] = EngineLoadFailed("broken")
    notes = Notes()
    with pytest.raises(StackedError, match="broken"):
        await live.update(BASE, (member("a", 2), member("b", 3)), notes)
    assert live.routing is before
    assert engine.held == held
    assert not engine.staged
    assert not notes.committed
    if call != "verify":  # what the engine says of itself blames nobody
        assert notes.blamed == [digest(2), digest(3)]
    engine.fails.clear()
    await live.update(BASE, (member("a", 2),), Notes())
    assert live.routing.resolve("a").digest == digest(2)


async def test_failed_commit_leaves_the_old_group(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    before, held = live.routing, dict(engine.held)
    with pytest.raises(UpdateFailed):
        await live.update(BASE, (member("a", 2),), Notes(broken=UpdateFailed("disk full")))
    assert live.routing is before
    assert engine.held == held


async def test_adapters_that_do_not_answer_as_they_must_end_the_update(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.wrong[digest(2)] = CanaryFailed("it changes nothing")
    notes = Notes()
    with pytest.raises(UpdateFailed, match="changes nothing"):
        await live.update(BASE, (member("a", 2), member("b", 3)), notes)
    assert notes.blamed == [digest(2)]
    assert list(engine.held.values()) == [digest(1)]


async def test_what_the_engine_cannot_hold_is_refused_before_anything_is_staged(
    engine: FakeEngine,
) -> None:
    live = await serving(engine, member("a", 1))
    engine.refuses = {digest(at): RankRefused(f"{at}") for at in (3, 4)}
    notes = Notes()
    with pytest.raises(UpdateFailed, match="2 models cannot be served LIVE"):
        await live.update(BASE, (member("b", 2), member("c", 3), member("d", 4)), notes)
    assert notes.blamed == [digest(3), digest(4)]
    assert engine.calls == []
    with pytest.raises(RankRefused):
        await live.add(member("d", 4))
    assert engine.calls == []


async def test_one_change_at_a_time(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.gate = asyncio.Event()
    first = asyncio.create_task(live.update(BASE, (member("a", 2),), Notes()))
    await asyncio.sleep(0)
    with pytest.raises(UpdateInProgress):
        await live.update(BASE, (member("a", 3),), Notes())
    engine.gate.set()
    await first
    await live.update(BASE, (member("a", 3),), Notes())


async def test_what_cannot_be_cleaned_up_does_not_undo_a_switch(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.fails["remove"] = EngineLoadFailed("still lists")
    report = await live.update(BASE, (member("a", 2),), Notes())
    assert report.left == (digest(1),)
    assert live.routing.resolve("a").digest == digest(2)


async def test_what_the_engine_kept_goes_with_the_next_update(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.fails["remove"] = EngineLoadFailed("still lists")
    await live.update(BASE, (member("a", 2),), Notes())
    engine.fails.clear()
    assert digest(1) in engine.held.values()
    await live.update(BASE, (member("b", 2),), Notes())
    assert list(engine.held.values()) == [digest(2)]


@pytest.mark.parametrize("call", ["stage", "verify"])
async def test_engine_at_fault_is_not_asked_for_every_other_adapter(
    engine: FakeEngine, call: str
) -> None:
    live = await serving(engine, member("a", 1))
    engine.fails[call] = EngineSilent("no answer from the engine in 120 s")
    with pytest.raises((EngineSilent, UpdateFailed), match="no answer"):
        await live.update(BASE, tuple(member(f"k{at}", at) for at in range(2, 42)), Notes())
    assert 1 <= engine.calls.count(call) <= 8, "those that are asked for together"


async def test_small_adapters_are_staged_together_and_large_ones_alone(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    most, now = 0, 0
    stage = engine.stage

    async def counted(one: Content) -> Loaded:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return await stage(one)

    engine.stage = counted  # type: ignore[method-assign]
    small = tuple(member(f"s{at}", at) for at in range(2, 32))
    await live.update(BASE, small, Notes())
    assert most == 8
    most = 0
    large = tuple(
        replace(each, content=replace(each.content, bytes=39 * 1024**2))
        for each in (member(f"l{at}", at) for at in range(32, 36))
    )
    await live.update(BASE, large, Notes())
    assert most == 1


async def test_silent_engine_is_not_waited_for_once_per_adapter(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_UNDO_SECONDS", 0.05)
    live = await serving(engine, *(member(f"k{at}", at) for at in range(1, 9)))
    asked: list[int] = []
    answering = asyncio.Event()

    async def discard(*loaded: Loaded) -> None:
        asked.append(len(loaded))
        await answering.wait()

    engine.discard = discard  # type: ignore[method-assign]
    report = await live.update(BASE, (), Notes())
    assert len(asked) == 1
    assert report.left == tuple(digest(at) for at in range(1, 9))
    answering.set()
    await live.update(BASE, (member("a", 9),), Notes())
    assert list(engine.held.values()) == [digest(9)]


@pytest.mark.parametrize(("error", "times"), [(EngineSilent, 1), (EngineError, 9)])
async def test_an_engine_that_timed_out_is_asked_no_more_and_one_that_refused_is(
    engine: FakeEngine, error: type[EngineError], times: int
) -> None:
    """Whatever the words: what is silent is told by the class of the error."""
    live = await serving(engine, *(member(f"k{at}", at) for at in range(1, 9)))
    asked: list[int] = []

    async def discard(*loaded: Loaded) -> None:
        asked.append(len(loaded))
        raise error("discarding: something went wrong")

    engine.discard = discard  # type: ignore[method-assign]
    report = await live.update(BASE, (), Notes())
    assert len(asked) == times
    assert report.left == tuple(digest(at) for at in range(1, 9))


async def test_adapter_of_a_request_that_cannot_be_ended_is_removed_when_it_ends(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await serving(engine, member("a", 1), drain=0)
    lease = live.admit({"key": "a"}).lease
    with monkeypatch.context() as patch:
        patch.setattr(live_module, "_LAST_WORDS_SECONDS", 0)
        report = await live.update(BASE, (member("a", 2),), Notes())
    assert report.left == (digest(1),)
    assert digest(1) in engine.held.values()
    lease.release()
    await until_async(lambda: list(engine.held.values()) == [digest(2)])


# -- every way in -------------------------------------------------------------------------------


async def test_an_adapter_that_is_added_alone_must_pass_its_canary(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    engine.wrong[digest(2)] = CanaryFailed("it changes nothing")
    with pytest.raises(CanaryFailed, match="changes nothing"):
        await live.add(member("b", 2))
    assert sorted(engine.held.values()) == [digest(1)]
    with pytest.raises(KeyUnknown):
        live.routing.resolve("b")
    engine.wrong.clear()
    assert (await live.add(member("b", 2))).digest == digest(2)


async def test_a_second_key_for_what_is_served_asks_nothing(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    await live.add(member("b", 1))
    assert engine.calls == []


async def test_quarantine_waits_for_the_change_under_way_and_then_frees_the_model(
    engine: FakeEngine,
) -> None:
    live = await serving(engine, member("a", 1), member("b", 2))
    handle = live.routing.handles[adapter(1).digest]
    lease = live.admit({"key": "a"}).lease
    engine.gate = asyncio.Event()
    update = asyncio.create_task(live.update(BASE, (member("a", 1), member("c", 3)), Notes()))
    await until_async(live._changing.locked)
    live.withhold(handle, "its process ended")
    await asyncio.sleep(0)
    assert live.routing.resolve("a").handle == handle
    engine.gate.set()
    await update
    await until_async(lambda: live.quarantined)
    assert {m.key: why for m, why in live.quarantined.items()} == {"a": "its process ended"}
    assert [route.label for route in live.routing] == ["base", "c"]
    assert handle.number in engine.held
    lease.release()
    await until_async(lambda: handle.number not in engine.held)


async def test_what_has_been_replaced_meanwhile_is_not_quarantined(engine: FakeEngine) -> None:
    live = await serving(engine, member("a", 1))
    handle = live.routing.handles[adapter(1).digest]
    await live.remove("a")
    again = await live.add(member("a", 1))
    live.withhold(handle, "its process ended")
    await asyncio.gather(*live._background)
    assert live.routing.resolve("a") == again
    assert not live.quarantined
