"""The start of an engine and the check of the files that it will read, which run at once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from stacked.core import Adapter, Base, Digest, ModelGroup, ModelId, Silent
from stacked.deployment import serving
from stacked.engine.engine import Engine
from stacked.errors import EngineDead, EngineStartFailed, StoreDamaged

ADAPTERS = [Adapter(Digest(f"sha256:{0:064x}"), Path("/gone"), 8, (), 0)]


class Started(Engine):
    """An engine that is there, and is closed once."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


def start(monkeypatch: pytest.MonkeyPatch, starting: Any, check: Any) -> Any:
    monkeypatch.setattr(serving, "_start_engine", lambda plan, progress: starting())
    monkeypatch.setattr(serving, "check_content", check)
    plan: Any = None
    return serving._start_engine_and_check(plan, ADAPTERS, Silent())


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
    assert checked == ADAPTERS


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
    await asyncio.sleep(0.05)
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dead engine is started again, and this one would die again."""
    engine = Dying()

    async def starting(*given: Any) -> Engine:
        return engine

    async def app(*given: Any) -> None: ...

    async def commit() -> int:
        raise AssertionError("nothing is committed")

    monkeypatch.setattr(serving, "_start_engine_and_check", starting)
    monkeypatch.setattr(serving.Serving, "_open_app", app)
    group = ModelGroup("tiny", Base(ModelId("ocid1.test.base"), "base", "/base"), ())
    plan: Any = None
    with pytest.raises(EngineStartFailed, match="has died: no such kernel"):
        await serving.Serving.start(group, plan, commit, drain_seconds=1, progress=Silent())
    assert engine.closed == 1
