"""Outcomes in memory: written now and then, before feedback that needs them, and bounded."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stacked import flushing
from stacked import outcomes as module
from stacked.config import ExperimentsConfig
from stacked.errors import FeedbackUnknown, RegistryUnusable
from stacked.experiments.assignment import Arm, Exposure
from stacked.outcomes import Outcomes, of_answer, of_unit
from stacked.registry import Registry
from stacked.registry.outcomes import Recorded, Tally
from tests.waiting import until_async

V1 = Exposure("sql", "one", "v1", "ann")
V2 = Exposure("sql", "one", "v2", "bob")
ARMS = [Arm("v1", 0.5, "sha256:1"), Arm("v2", 0.5, "sha256:2")]
GOOD = Tally(1, 0, 1, 2.0, 0.5, 10, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with Registry(path, busy_seconds=0.05) as opened:
        yield opened


def begun(registry: Registry, **settings: int) -> Outcomes:
    outcomes = Outcomes(ExperimentsConfig(**settings), lambda _: ARMS)
    outcomes.begin(registry.outcomes)
    return outcomes


def answered(outcomes: Outcomes, id: str, exposure: Exposure) -> None:
    outcomes.saw(exposure)
    outcomes.add(id, exposure, GOOD)


def answers(registry: Registry) -> tuple[int, ...]:
    phases = registry.outcomes.phases()
    return phases[0].answers if phases else ()


def anyone(experiment: str) -> bool:
    return True


async def test_they_are_written_every_few_seconds_and_at_the_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "FLUSH_SECONDS", 0.01)
    outcomes = begun(registry)
    answered(outcomes, "1", V1)
    await until_async(lambda: answers(registry) == (1, 0))
    for id, exposure in (("2", V1), ("3", V2), ("4", V2._replace(unit=None))):
        answered(outcomes, id, exposure)
    await outcomes.close()
    assert answers(registry) == (2, 1)
    assert registry.outcomes.phases()[0].drawn == 1


async def test_feedback_for_an_answer_of_a_moment_ago_finds_it(registry: Registry) -> None:
    outcomes = begun(registry)
    answered(outcomes, "ONE", V1)
    writing = asyncio.create_task(outcomes.flush())
    await asyncio.sleep(0)  # it has begun, and what it writes is pending no more
    answered(outcomes, "TWO", V2)
    ids = ("ONE", "chatcmpl-ONE", "cmpl-TWO", "TWO", "three")
    found = [(await outcomes.record([of_answer(id, "good", 1)], anyone))[0] for id in ids]
    assert found[:4] == [
        Recorded("sql", False),
        Recorded("sql", True),
        Recorded("sql", False),
        Recorded("sql", True),
    ]
    assert isinstance(found[4], FeedbackUnknown)
    answered(outcomes, "FOUR", Exposure("sql", "one", "v1", "carl"))
    carl = of_unit(Exposure("sql", "one", "v1", "carl"), "good", 0)
    assert await outcomes.record([carl], anyone) == [Recorded("sql", False)]
    await writing
    await outcomes.close()


async def test_feedback_for_an_answer_of_another_server_waits_until_that_has_written_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    other, outcomes = begun(registry), Outcomes(ExperimentsConfig(), lambda _: ARMS)

    async def flush_instead(seconds: float) -> None:
        waits.append(seconds)
        await other.flush()

    outcomes.begin(registry.outcomes, shared=True)
    answered(other, "ONE", V1)
    monkeypatch.setattr(module.asyncio, "sleep", flush_instead)
    value = of_answer("ONE", "good", 1)
    assert await outcomes.record([value], anyone) == [Recorded("sql", False)]
    assert waits == [flushing.FLUSH_SECONDS + 1.0]
    assert await outcomes.record([value], anyone) == [Recorded("sql", True)]
    (unknown,) = await outcomes.record([of_answer("TWO", "good", 1)], anyone)
    assert isinstance(unknown, FeedbackUnknown)
    assert len(waits) == 2
    for each in (other, outcomes):
        await each.close()


async def test_what_cannot_be_written_is_written_later_and_once(
    registry: Registry, path: Path
) -> None:
    outcomes = begun(registry)
    answered(outcomes, "1", V1)
    answered(outcomes, "2", V2._replace(unit=None))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(RegistryUnusable):
                await outcomes.flush()
        answered(outcomes, "3", V1)
        with pytest.raises(RegistryUnusable):
            await outcomes.record([of_answer("1", "good", 1)], anyone)
    await outcomes.close()
    assert answers(registry) == (2, 0)
    assert registry.outcomes.phases()[0].drawn == 1


async def test_feedback_that_comes_together_is_stored_together_and_answered_each(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, sizes = begun(registry), list[int]()
    store = registry.outcomes.record

    def counted(values: Any, **more: Any) -> Any:
        sizes.append(len(values))
        if len(sizes) == 3:
            raise RegistryUnusable("the disk is full")
        return store(values, **more)

    monkeypatch.setattr(registry.outcomes, "record", counted)
    for number in range(40):
        answered(outcomes, str(number), V1)

    async def send(number: int) -> Any:
        values = [of_answer(str(number), metric, 1) for metric in ("good", "short")]
        return await outcomes.record(values, lambda _: number % 4 > 0)

    sent = [asyncio.create_task(send(number)) for number in range(40)]
    await until_async(lambda: bool(sizes))
    assert sent[20].cancel()
    found = await asyncio.gather(*sent, return_exceptions=True)
    assert sum(sizes) == 80
    assert len(sizes) <= 2
    for number in {*range(40)} - {20}:
        kinds = {type(each) for each in found[number]}
        assert kinds == ({Recorded} if number % 4 else {FeedbackUnknown})
    sizes += [0] * (2 - len(sizes))
    for failed in await asyncio.gather(send(1), send(2), return_exceptions=True):
        assert isinstance(failed, RegistryUnusable)
    assert await send(1) == [Recorded("sql", True)] * 2
    await outcomes.close()


async def test_what_waits_to_be_written_is_bounded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 3)
    outcomes = begun(registry)
    for number in range(5):
        answered(outcomes, str(number), V1)
    await outcomes.close()
    assert answers(registry) == (3, 0)


async def test_without_records_nothing_is_gathered() -> None:
    outcomes = Outcomes(ExperimentsConfig(), lambda _: ARMS)
    answered(outcomes, "1", V1)
    assert not outcomes.pending.units
    await outcomes.flush()
    await outcomes.close()
