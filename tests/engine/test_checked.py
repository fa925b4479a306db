"""What an adapter passes on its way into a served group; the engine is a double."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.core import Adapter, Digest
from stacked.engine import checked
from stacked.engine.checked import CheckedEngine
from stacked.engine.loaded import Loaded
from stacked.errors import (
    CanaryFailed,
    EngineLoadFailed,
    EngineSilent,
    ModuleUnapplied,
    RankRefused,
    StackedError,
    StoreDamaged,
)
from stacked.store.verified import Verified
from tests.groups.test_routing import adapter

BASE = [-1.0, -2.0]


def digest(number: int) -> Digest:
    return adapter(number).digest


def loaded(*numbers: int) -> dict[Digest, Loaded]:
    nothing: Any = None
    return {digest(at): Loaded(digest(at), f"n{at}", at, nothing) for at in numbers}


class Answers:
    """Engines that answer canaries as they are told to, by digest; None is the base."""

    adopt = activate = discard = remove = undisturbed = None

    def __init__(self) -> None:
        self.plan = SimpleNamespace(max_rank=16)
        self.asked: list[Digest | None] = []
        self.answers: dict[Digest | None, Sequence[float] | StackedError] = {}
        self.base: list[Sequence[float]] = []
        """What the base answers in turn, before it answers as ever."""
        self.staged: list[Digest] = []
        self.others: Sequence[Sequence[float]] = ()
        """What further engines answer for an adapter."""

    async def canary(self, one: Loaded | None) -> Sequence[Sequence[float]]:
        name = one.digest if one else None
        self.asked.append(name)
        if one is None:
            return [self.base.pop(0) if self.base else BASE, *(BASE for _ in self.others)]
        answer = self.answers.get(name, [-3.0, -4.0])
        if isinstance(answer, StackedError):
            raise answer
        return [answer, *self.others]

    async def stage(self, one: Adapter) -> Loaded:
        self.staged.append(one.digest)
        return loaded(1)[digest(1)]


class Modules:
    """What an engine applies adapters to; `refuses` is raised."""

    def __init__(self) -> None:
        self.refuses: StackedError | None = None

    def ask(self) -> Modules:
        return self

    def check(self, modules: Sequence[str]) -> None:
        if self.refuses:
            raise self.refuses


@pytest.fixture
def engine() -> Answers:
    return Answers()


@pytest.fixture
def verified(tmp_path: Path) -> Verified:
    return Verified(tmp_path / "verified")


def made(engine: Any, verified: Verified, modules: Any = None) -> CheckedEngine:
    return CheckedEngine(engine, modules or Modules(), verified)


def uncounted(count: int) -> None: ...


async def test_each_adapter_is_asked_once_between_answers_of_the_base(
    engine: Answers, verified: Verified
) -> None:
    counts: list[int] = []
    assert await made(engine, verified).verify(loaded(1, 2), counts.append) == {}
    assert engine.asked == [None, None, digest(1), digest(2), None]
    assert counts == [1, 2]
    assert digest(1) in verified
    assert digest(2) in verified


@pytest.mark.parametrize(
    ("answer", "said"), [(BASE, "changes nothing"), ([float("nan"), -2.0], "not finite")]
)
async def test_adapters_that_do_nothing_or_answer_with_nan_are_found(
    engine: Answers, verified: Verified, answer: Sequence[float], said: str
) -> None:
    engine.answers[digest(2)] = answer
    failed = await made(engine, verified).verify(loaded(1, 2), uncounted)
    assert [*failed] == [digest(2)]
    assert isinstance(failed[digest(2)], CanaryFailed)
    assert said in str(failed[digest(2)])
    assert digest(2) not in verified
    assert digest(1) in verified


@pytest.mark.parametrize("drifted", [[-5.0, -2.0], [float("nan"), -2.0]])
async def test_base_that_changes_with_new_adapters_is_an_error(
    engine: Answers, verified: Verified, drifted: Sequence[float]
) -> None:
    engine.base = [BASE, BASE, drifted]
    with pytest.raises(CanaryFailed, match="the base answers differently"):
        await made(engine, verified).verify(loaded(1), uncounted)
    assert digest(1) not in verified


@pytest.mark.parametrize("broken", [BASE, [-3.0, float("nan")]])
async def test_adapter_that_fails_on_one_of_several_engines_is_refused_with_its_name(
    engine: Answers, verified: Verified, broken: Sequence[float]
) -> None:
    engine.others = [[-3.0, -4.0], broken]
    failed = await made(engine, verified).verify(loaded(1), uncounted)
    assert "on engine 2" in str(failed[digest(1)])
    assert [*await made(engine, verified).verify_at_start(loaded(2).values())] == [digest(2)]


async def test_base_that_changes_on_one_of_several_engines_is_an_error(
    engine: Answers, verified: Verified
) -> None:
    class Drifting(Answers):
        async def canary(self, one: Loaded | None) -> Sequence[Sequence[float]]:
            rows = [*await super().canary(one)]
            return [*rows[:1], [-1.0, float("nan")]] if self.asked.count(None) == 3 else rows

    drifting = Drifting()
    drifting.others = [[-3.0, -4.0]]
    with pytest.raises(CanaryFailed, match="the base answers differently"):
        await made(drifting, verified).verify(loaded(1), uncounted)


async def test_adapter_that_moves_no_more_than_the_base_itself_changes_nothing(
    engine: Answers, verified: Verified
) -> None:
    engine.base = [[-1.0, -2.0], [-1.01, -2.0]]
    engine.answers[digest(1)] = [-1.005, -2.0]
    assert [*await made(engine, verified).verify(loaded(1), uncounted)] == [digest(1)]


async def test_engine_that_is_silent_is_asked_for_no_more_adapters(
    engine: Answers, verified: Verified
) -> None:
    engine.answers[digest(1)] = EngineLoadFailed("this one")
    engine.answers[digest(2)] = EngineSilent("no answer")
    failed = await made(engine, verified).verify(loaded(1, 2, 3), uncounted)
    assert {each: type(error) for each, error in failed.items()} == {
        digest(1): EngineLoadFailed,
        digest(2): EngineSilent,
    }
    assert digest(3) not in engine.asked


async def test_start_asks_many_at_once_and_finds_each_that_is_wrong(
    engine: Answers, verified: Verified
) -> None:
    engine.answers = {digest(5): BASE, digest(70): [float("nan")] * 2}
    failed = await made(engine, verified).verify_at_start(loaded(*range(1, 71)).values())
    assert {each: type(error) for each, error in failed.items()} == {
        digest(5): CanaryFailed,
        digest(70): CanaryFailed,
    }


async def test_what_passed_is_not_asked_again_at_the_next_start(
    engine: Answers, verified: Verified, tmp_path: Path
) -> None:
    engine.answers[digest(2)] = BASE
    await made(engine, verified).verify_at_start(loaded(1, 2).values())
    engine.asked.clear()
    again = made(engine, Verified(tmp_path / "verified"))
    assert await again.verify_at_start(loaded(1).values()) == {}
    assert engine.asked == []
    assert [*await again.verify_at_start(loaded(1, 2).values())] == [digest(2)]
    assert engine.asked == [None, None, None, digest(2)]


async def test_adapter_is_checked_before_the_engine_reads_it(
    engine: Answers, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(one: Adapter, pause: Any) -> None:
        if one.digest == digest(2):
            raise StoreDamaged("it has other content now")

    monkeypatch.setattr(checked, "check_stored", check)
    monkeypatch.setattr(checked, "modules_of", lambda one: ["q_proj"])
    modules = Modules()
    made_of = made(engine, verified, modules)
    with pytest.raises(StoreDamaged):
        await made_of.stage(adapter(2))
    modules.refuses = ModuleUnapplied("none of it")
    with pytest.raises(ModuleUnapplied):
        await made_of.stage(adapter(1))
    assert engine.staged == []
    modules.refuses = None
    await made_of.stage(adapter(1))
    assert engine.staged == [digest(1)]


def test_rank_above_the_engines_is_refused_with_what_helps(
    engine: Answers, verified: Verified
) -> None:
    engine.plan.max_rank = adapter(1).rank
    made(engine, verified).check(adapter(1))
    engine.plan.max_rank -= 1
    with pytest.raises(RankRefused, match="has rank 8, and this engine takes 7; set engine"):
        made(engine, verified).check(adapter(1))
