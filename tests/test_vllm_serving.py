"""The start of an engine and the check of the files that it will read, which run at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.config import Design, ServerConfig
from stacked.core import Adapter, Base, Digest, Member, ModelGroup, ModelId, model_id_of
from stacked.engine.adaptable import Asking
from stacked.engine.calls import Calls
from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded
from stacked.engine.processes import Ended
from stacked.errors import (
    CanaryFailed,
    EngineDead,
    EngineStartFailed,
    ModuleUnapplied,
    StackedError,
    StoreDamaged,
    UpdateFailed,
    ValueTooLarge,
)
from stacked.serving import vllm
from stacked.serving.settings import settings_of
from stacked.serving.vllm import VllmPrepared, VllmServing
from stacked.steps import Phase, Silent
from stacked.store import AdapterStore, BaseModules, checks
from stacked.store.adaptable import Adaptable
from stacked.store.verified import Verified
from tests.store.small import LINEAR, lora_weights, write_adapter, write_base

ADAPTER = Adapter(Digest(f"sha256:{0:064x}"), Path("/gone"), 0, 8, ())
BASE = Base(ModelId("ocid1.base"), "base", "/base")


class Started(Engine):
    """An engine that is there, and is closed once."""

    dead = False

    def __init__(self) -> None:
        self.closed = 0
        self.args: Any = SimpleNamespace(otlp_traces_endpoint=None)
        self.suspects: frozenset[Digest] = frozenset()
        self.oom = False

    async def close(self) -> None:
        self.closed += 1

    async def ended(self) -> Ended:
        return Ended(-9, self.oom)


def start(monkeypatch: pytest.MonkeyPatch, starting: Any, check: Any) -> Any:
    monkeypatch.setattr(Engine, "start", lambda plan, progress: starting())
    monkeypatch.setattr(vllm, "check_stored", check)
    group = ModelGroup("g", BASE, (Member(model_id_of(ADAPTER.digest), ADAPTER, "a"),))
    prepared: Any = SimpleNamespace(plan=None, group=group, loaded=group)
    return vllm._start_engine(prepared, Silent())


async def test_damaged_files_end_a_start_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def starting() -> Engine:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("ended")
        return Started()

    def check(adapter: Adapter) -> None:
        raise StoreDamaged("cut short")

    with pytest.raises(StoreDamaged, match="cut short"):
        await start(monkeypatch, starting, check)
    assert ended == ["ended"]


async def test_an_engine_that_was_there_first_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, there = Started(), threading.Event()

    async def starting() -> Engine:
        there.set()
        return engine

    def check(adapter: Adapter) -> None:
        there.wait(20)
        raise StoreDamaged("cut short")

    with pytest.raises(StoreDamaged):
        await start(monkeypatch, starting, check)
    assert engine.closed == 1


async def test_an_engine_that_does_not_start_is_told_after_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[Adapter] = []

    async def starting() -> Engine:
        raise EngineStartFailed("no room")

    with pytest.raises(EngineStartFailed, match="no room"):
        await start(monkeypatch, starting, checked.append)
    assert checked == [ADAPTER]


async def test_a_cancelled_start_is_cancelled_in_its_engine_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, ended = asyncio.Event(), []

    async def starting() -> Engine:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return Started()

    task = asyncio.ensure_future(start(monkeypatch, starting, lambda adapter: None))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled"]


class Dying(Started):
    """An engine that dies while it warms up."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: Any = None

    async def warm(self) -> None:
        raise EngineDead("the engine has died: no such kernel")


async def test_an_engine_that_dies_while_it_starts_is_a_failed_start_and_no_dead_one(
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dead engine is started again, and this one would die again."""
    engine = Dying()

    async def starting(*given: Any) -> Engine:
        return engine

    async def commit() -> int:
        raise AssertionError("nothing is committed")

    monkeypatch.setattr(vllm, "_start_engine", starting)
    prepared = known.prepared(ModelGroup("tiny", BASE, ()))
    with pytest.raises(EngineStartFailed, match="has died: no such kernel") as failed:
        await VllmServing.start(prepared, commit, ServerConfig(), Silent())
    assert engine.closed == 1
    assert not failed.value.suspects


# What a start checks against the engine once it runs


class Warm(Started):
    """An engine that applies adapters to q_proj alone, and answers with `canaries` by digest."""

    def __init__(self, canaries: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.plan: Any = SimpleNamespace(max_rank=64)
        self.canaries = canaries or {}
        self.loaded: list[Digest] = []

    async def warm(self) -> None: ...

    def undisturbed(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def adaptable(self) -> Adaptable:
        modules = {f"model.layers.{at}.self_attn.q_proj": None for at in range(2)}
        return Adaptable("SmallForCausalLM", modules)

    async def load_all(
        self, adapters: Sequence[Adapter], told: Any, alone: Any = ()
    ) -> Mapping[Digest, Loaded]:
        self.loaded = [adapter.digest for adapter in adapters]
        nothing: Any = None
        return {d: Loaded(d, d, at, nothing) for at, d in enumerate(self.loaded, start=1)}

    async def canary(self, loaded: Loaded | None) -> Sequence[Sequence[float]]:
        own = self.canaries.get(loaded.digest, [-3.0, -4.0]) if loaded else None
        return [own or [-1.0, -2.0]]


@dataclass(frozen=True)
class Known:
    """What is known of an engine before it starts."""

    asking: Asking
    verified: Verified

    def prepared(self, group: ModelGroup) -> VllmPrepared:
        plan: Any = SimpleNamespace(text=lambda: "a plan", max_rank=64)
        nothing: Any = None
        return VllmPrepared(group, settings_of({}), plan, nothing, self.asking, self.verified)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    async def opened(self: VllmServing) -> None: ...

    monkeypatch.setattr(VllmServing, "_open_app", opened)
    asking = Asking(write_base(tmp_path / "base"), {"dtype": "float32"}, tmp_path / "store")
    return Known(asking, Verified(tmp_path / "store" / "v"))


def group_of(tmp_path: Path, *names: str, scale: float = 1) -> ModelGroup:
    """Members of these keys, each of the modules that its key says."""
    store = AdapterStore(tmp_path / "store")
    base = BaseModules.read(tmp_path / "base")
    members = []
    for seed, name in enumerate(names, start=1):
        found = {n: v for n, v in lora_weights().items() if "q_proj" in n or name == "all"}
        weights = {n: v * seed * v.dtype.type(scale) for n, v in found.items()}
        targets = [*{name.rpartition(".")[2] for name in LINEAR}] if name == "all" else ["q_proj"]
        source = write_adapter(tmp_path / f"source-{name}", weights, target_modules=targets)
        adapter = store.add(str(source), base=base)
        members.append(Member(model_id_of(adapter.digest), adapter, name))
    return ModelGroup("g", BASE, tuple(members))


async def started(
    group: ModelGroup, engine: Engine, known: Known, monkeypatch: pytest.MonkeyPatch
) -> VllmServing:
    async def starting(plan: Any, progress: Any) -> Engine:
        return engine

    async def commit() -> int:
        return 7

    monkeypatch.setattr(Engine, "start", starting)
    return await VllmServing.start(known.prepared(group), commit, ServerConfig(), Silent())


async def test_a_member_that_would_act_in_part_fails_the_start_by_its_key(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Warm()
    group = group_of(tmp_path, "one", "all")
    with pytest.raises(ModuleUnapplied, match=r"^all: 4 of 6 .*down_proj"):
        await started(group, engine, known, monkeypatch)
    assert (engine.loaded, engine.closed) == ([], 1)
    asked = known.asking.known()
    assert asked is not None  # what the engine told is kept for the next start
    assert asked.architecture == "SmallForCausalLM"


@pytest.mark.parametrize("oom", [False, True])
async def test_a_failed_start_names_what_was_loaded_but_does_not_blame_it_for_memory(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch, oom: bool
) -> None:
    class DyingInLoad(Warm):
        async def load_all(self, adapters: Sequence[Adapter], *more: Any) -> Any:
            self.suspects = frozenset({adapters[1].digest})
            raise EngineDead("the engine has died")

    engine = DyingInLoad()
    engine.oom = oom
    group = group_of(tmp_path, "one", "two")
    with pytest.raises(EngineStartFailed, match="while it loaded two: ") as failed:
        await started(group, engine, known, monkeypatch)
    assert failed.value.suspects == (set() if oom else {group.members[1].content.digest})


async def test_a_start_whose_engine_dies_in_a_load_ends_without_its_answer(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Warm):
        """As vLLM's client, which leaves the calls of a dead engine waiting."""

        async def load_all(self, adapters: Sequence[Adapter], *more: Any) -> Any:
            self.suspects = frozenset({adapters[1].digest})
            self.dead = True
            await self.calls.call(asyncio.get_running_loop().create_future(), "loading adapters")

    engine = Killed()
    parallel = SimpleNamespace(data_parallel_size=1)
    engine.calls = Calls(SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel)))
    group = group_of(tmp_path, "one", "two")
    with pytest.raises(EngineStartFailed, match="while it loaded two: the engine has died"):
        await started(group, engine, known, monkeypatch)
    assert engine.closed == 1


async def test_a_member_that_answers_as_the_base_fails_the_start_by_its_key(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_of(tmp_path, "one", "two")
    same = group.members[1].content.digest
    engine = Warm({same: [-1.0, -2.0]})
    with pytest.raises(CanaryFailed, match=r"^two: .* changes nothing"):
        await started(group, engine, known, monkeypatch)
    assert engine.closed == 1
    assert same not in known.verified
    assert group.members[0].content.digest in known.verified


async def test_a_group_that_acts_in_whole_is_served_and_remembered(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_of(tmp_path, "one", "two")
    made = await started(group, Warm(), known, monkeypatch)
    assert made.live.routing.generation == 7
    assert {m.content.digest in known.verified for m in group} == {True}
    await made.close()


async def test_what_an_earlier_version_stored_is_checked_before_an_engine_reads_it(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(checks, "_check_values", lambda values, tensors: None)
        (large,) = group_of(tmp_path, "two", scale=1e5).members
    engine = Warm()
    with pytest.raises(ValueTooLarge, match=r"stored adapter sha256:.* at most 10000"):
        await started(ModelGroup("g", BASE, (large,)), engine, known, monkeypatch)
    assert (engine.loaded, engine.closed) == ([], 1)
    made = await started(ModelGroup("g", BASE, ()), Warm(), known, monkeypatch)
    with pytest.raises(UpdateFailed, match="magnitude"):
        await made.live.update(BASE, (large,), Journal())
    await made.close()


async def test_a_start_in_its_place_has_the_experiments_of_the_last_update(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    def design(*weights: float) -> Design:
        arms = [{"key": key, "weight": w} for key, w in zip(("one", "base"), weights, strict=True)]
        return Design.of({"stacked.experiments": json.dumps([{"key": "sql", "arms": arms}])})

    group = group_of(tmp_path, "one")
    group = replace(group, metadata={"mine": "x", **design(1, 1).as_metadata()})
    made = await started(group, Warm(), known, monkeypatch)
    assert made.live.routing.design == design(1, 1)
    await made.live.update(BASE, group.members, Journal(), design(3, 1))
    prepared, stands = made.again({})
    again = await VllmServing.start(prepared, stands, ServerConfig(), Silent())
    assert again.live.routing.design == design(3, 1)
    assert [row.name for row in again._rows()] == ["base", "one", "sql"]
    for each in (made, again):
        await each.close()


class Journal:
    """Of an update that nobody follows."""

    def step(self, step: Phase, done: float, detail: str) -> None: ...

    def refused(self, adapter: Digest, error: StackedError) -> None: ...

    async def commit(self, generation: int) -> None: ...


async def test_an_update_is_checked_against_the_running_engine(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, other = group_of(tmp_path, "one", "all").members
    group = ModelGroup("g", BASE, (served,))
    made = await started(group, Warm(), known, monkeypatch)
    report = await made.live.update(BASE, (served,), Journal())
    assert report.generation == 8
    with pytest.raises(UpdateFailed, match="down_proj"):
        await made.live.update(BASE, (other,), Journal())
    await made.close()
