"""Shadow traffic over doubles: what is copied, and every order in which copies end."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stacked.config import Design, ShadowConfig, ShadowLimits
from stacked.engine.made import Made
from stacked.engine.openai import Report
from stacked.errors import EngineDead
from stacked.experiments.comparison import Tally
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.serving import Admission
from stacked.serving import shadow as shadow_module
from stacked.serving.inside import Answer
from stacked.serving.shadow import Shadow
from stacked.serving.targets import Target
from tests.groups.test_routing import BASE, member
from tests.test_live import FakeEngine, Notes
from tests.waiting import until_async

BODY = b'{"prompt": "x", "temperature": 0}'
TEXT = Target("/v1/completions")
KNOWN = {"/v1/completions": frozenset({"prompt", "temperature"})}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "_PAUSE_SECONDS", 0.0001)
    monkeypatch.setattr(shadow_module, "_BURST_SECONDS", 0.001)


class Queue:
    """Turns at the engine; `busy` while requests wait for theirs."""

    def __init__(self) -> None:
        self.crowded: Callable[[], object] | None = None
        self.busy = False

    def waiting(self) -> dict[str, int]:
        return {"key": 1} if self.busy else {}

    def crowd(self) -> None:
        self.busy = True
        if self.crowded is not None:
            self.crowded()


class World:
    """A live group of `a`, `b` and `c`, and shadows of `a`, whose copies wait for `gate`."""

    def __init__(self, percent: float = 100, to: str = "b", **limits: Any) -> None:
        self.queue, self.gate, self.scoring = Queue(), asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.scoring.set()
        self.text, self.status = "same", 200
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []
        self.engine = FakeEngine()
        self.members = tuple(member(key, at) for at, key in enumerate("abc", start=1))
        self.design = Design(shadow=(ShadowConfig(key="a", to=to, percent=percent),))
        handles = {each.content.digest: self.handle(each) for each in self.members}
        routing = Routing.of(BASE, self.members, handles, design=self.design)
        self.live = Live(self.engine, routing, drain_seconds=30)
        state = SimpleNamespace(turns=self.queue)
        self.serving: Any = SimpleNamespace(
            live=self.live,
            engine=SimpleNamespace(reading=False, full=False, seats=128),
            app=SimpleNamespace(state=state),
            door=SimpleNamespace(path_of=lambda call: call.target.path, known=KNOWN),
        )
        self.shadow = Shadow(ShadowLimits(**limits), self._ask, self._score)

    def handle(self, one: Any) -> Any:
        loaded = self.engine.handle(one.content.digest)
        self.engine.held[loaded.number] = loaded.digest
        return loaded

    async def _ask(self, serving: Any, route: Any, path: str, body: Any, **more: Any) -> Answer:
        assert more["share"].batch
        self.asked.append({"key": route.label, "path": path, **body})
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.status == 200:
            more["output"](output(self.text))
        return Answer(self.status, b"", 1, 1)

    async def _score(self, *_: Any, **__: Any) -> float:
        await self.scoring.wait()
        return -1.0

    async def request(
        self,
        name: str = "a",
        body: bytes = BODY,
        target: Target = TEXT,
        answer: Callable[[Report], Awaitable[None]] | None = None,
    ) -> None:
        """One request from its admission to its end."""

        async def answers(_receive: Any, _send: Any, report: Report) -> None:
            if answer is not None:
                await answer(report)
            elif report.output is not None:
                report.output(output("same"))

        route = self.live.routing.resolve(name)
        admission = Admission(route, cast("Any", nullcontext()), answers, 1)
        scope = {"headers": [(b"authorization", b"secret")]}
        watched = self.shadow.watch(self.serving, admission, target, scope, body)
        report = Report(lambda *_: None, lambda _: None)
        await watched.answer(cast("Any", None), cast("Any", None), report)

    @property
    def tally(self) -> Tally:
        """The only one."""
        (found,) = self.shadow.findings.tallies.values()
        return found

    async def settled(self) -> Tally:
        """All that was found, once no copy runs."""
        await until_async(lambda: not self.shadow._running and not self.shadow._waiting)
        whole = Tally()
        for each in self.shadow.findings.tallies.values():
            whole.copies += each.copies
            whole.same += each.same
            whole.dropped.update(each.dropped)
            whole.failed.update(each.failed)
        return whole


def output(text: str, finish: str | None = "stop", index: int = 0, count: int = 1) -> Any:
    """One of vLLM's."""
    made = SimpleNamespace(index=index, text=text, token_ids=[7] * count, finish_reason=finish)
    return SimpleNamespace(request_id="one", prompt_token_ids=[1, 2], outputs=[made])


# -- which requests -----------------------------------------------------------------------------


async def test_a_copy_goes_to_the_other_model_and_is_compared() -> None:
    world = World()
    await world.request()
    tally = await world.settled()
    assert (tally.copies, tally.same) == (1, 1)
    assert world.asked == [{"key": "b", "path": "/v1/completions", "prompt": "x", "temperature": 0}]
    (line,) = world.shadow.findings.tallies
    a, b, _ = world.members
    assert line == ("a", "b", a.content.digest, b.content.digest)
    assert (world.tally.logprob.served.value, world.tally.logprob.shadow.count) == (-1.0, 1)
    world.text = "other"
    await world.request()
    await world.settled()
    assert (world.tally.copies, world.tally.same) == (2, 1)


async def test_the_given_part_is_copied_and_other_keys_and_endpoints_are_not() -> None:
    world = World(percent=20)
    for _ in range(500):
        await world.request()
        await world.request("c")
        await world.request(target=Target("/tokenize"))
        await world.settled()
    assert 98 <= (await world.settled()).copies <= 102
    assert {each["key"] for each in world.asked} == {"b"}


async def test_the_base_can_be_the_other_model() -> None:
    world = World(to="base")
    await world.request()
    assert (await world.settled()).copies == 1


async def test_a_request_without_a_whole_answer_is_not_copied() -> None:
    async def refused(report: Report) -> None:
        """vLLM has answered with an error."""

    async def left(report: Report) -> None:
        assert report.output is not None
        report.output(output("half", finish=None))

    async def broken(report: Report) -> None:
        await left(report)
        raise asyncio.CancelledError

    world = World()
    await world.request(answer=refused)
    await world.request(answer=left)
    with pytest.raises(asyncio.CancelledError):
        await world.request(answer=broken)
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (0, {"unfinished": 3})


async def test_what_is_too_large_or_has_several_answers_is_not_copied_nor_kept() -> None:
    async def several(report: Report) -> None:
        assert report.output is not None
        report.output(output("one"))
        report.output(output("two", index=1))

    async def huge(report: Report) -> None:
        assert report.output is not None
        for _ in range(100):
            report.output(output("x" * 100_000, finish=None, count=1000))
        report.output(output("", finish="stop"))
        held = [each for each in gc.get_objects() if isinstance(each, Made)]
        assert not any(each.tokens or each.text for each in held)

    world = World()
    await world.request(answer=several)
    await world.request(answer=huge)
    await world.request(body=b'{"prompt": "' + b"x" * 300_000 + b'"}')
    await world.request(body=b'{"prompt": "x", "n": 2}')
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (0, {"unsuitable": 4})


# -- load ---------------------------------------------------------------------------------------


async def test_few_run_some_wait_and_the_others_are_dropped() -> None:
    world = World(running=2, waiting=3)
    world.gate.clear()
    for _ in range(10):
        await world.request()
    await until_async(lambda: len(world.asked) == 2)
    (tally,) = world.shadow.findings.tallies.values()
    assert tally.dropped == {"queue": 5}
    world.gate.set()
    assert (await world.settled()).copies == 5


async def test_copies_run_together_once_they_are_many_or_have_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow_module, "_BURST_SECONDS", 3600)
    world = World(running=3)
    for count in (1, 2, 3):
        assert not world.shadow._running
        await world.request()
        assert len(world.shadow._waiting) == count % 3
    assert len(world.shadow._running) == 3
    await world.settled()
    monkeypatch.setattr(shadow_module, "_BURST_SECONDS", 0.001)
    await world.request()
    assert not world.shadow._running
    assert (await world.settled()).copies == 4


async def test_few_run_together_on_an_engine_that_runs_few() -> None:
    world = World(running=3)
    world.serving.engine.seats = 16
    world.gate.clear()
    for _ in range(4):
        await world.request()
    assert (len(world.shadow._running), len(world.shadow._waiting)) == (2, 2)
    world.gate.set()
    assert (await world.settled()).copies == 4


async def test_long_prompts_are_read_one_by_one() -> None:
    async def long(report: Report) -> None:
        assert report.output is not None
        one = output("same")
        one.prompt_token_ids = [1] * 400
        report.output(one)

    world = World(running=3)
    world.gate.clear()
    for _ in range(3):
        await world.request(answer=long)
    assert (len(world.shadow._running), len(world.shadow._waiting)) == (1, 2)
    world.gate.set()
    assert (await world.settled()).copies == 3


async def test_nothing_is_copied_while_requests_wait() -> None:
    world = World()
    world.queue.busy = True
    for _ in range(5):
        await world.request()
    assert (await world.settled()).dropped == {"load": 5}
    assert world.asked == []
    world.queue.busy = False
    await world.request()
    assert (await world.settled()).copies == 1


@pytest.mark.parametrize("state", ["created", "asking", "scoring"])
async def test_all_make_room_once_a_request_waits(state: str) -> None:
    world = World(running=2, waiting=3)
    (world.scoring if state == "scoring" else world.gate).clear()
    for _ in range(5):
        await world.request()
    if state != "created":
        await until_async(lambda: len(world.asked) == 2)
        await asyncio.sleep(0)
    world.queue.crowd()
    world.queue.crowd()
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (0, {"load": 5})
    assert not world.live.leases.things()
    assert len(world.asked) == (0 if state == "created" else 2)


async def test_no_copy_is_read_while_somebody_waits_for_a_first_token() -> None:
    world = World(running=1)
    world.serving.engine.reading = True
    await world.request()
    await until_async(lambda: world.live.leases.things())
    for _ in range(3):
        await asyncio.sleep(shadow_module._PAUSE_SECONDS)
    assert world.asked == []
    world.serving.engine.reading = False
    await until_async(lambda: world.asked)
    assert (await world.settled()).copies == 1
    busy = World(seconds=0.05)
    busy.serving.engine.reading = True
    await busy.request()
    assert (await busy.settled()).dropped == {"load": 1}


async def test_an_engine_without_turns_is_full_when_it_runs_all_it_can() -> None:
    world = World()
    world.serving.app.state.turns = None
    world.serving.engine.full = True
    await world.request()
    world.serving.engine.full = False
    await world.request()
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (1, {"load": 1})


async def test_ten_thousand_requests_leave_a_few_numbers() -> None:
    world = World(running=2, waiting=4, samples=3)
    for at in range(10_000):
        world.gate.clear() if at % 7 else world.gate.set()
        await world.request()
        if at % 100 == 0:
            world.queue.crowd()
            world.queue.busy = False
    world.gate.set()
    tally = await world.settled()
    assert tally.copies + tally.dropped.total() == 10_000
    assert min(tally.copies, tally.dropped["queue"], tally.dropped["load"]) > 0
    assert len(world.shadow.findings.samples) == 3
    assert len(world.shadow.findings.tallies) <= 2
    assert sum(isinstance(each, Made) for each in gc.get_objects()) < 10


# -- updates and the end ------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["created", "asking", "scoring"])
@pytest.mark.parametrize("gone", ["a", "b"])
async def test_an_update_that_removes_a_model_does_not_wait_for_copies(
    state: str, gone: str
) -> None:
    world = World(running=2, waiting=3)
    (world.scoring if state == "scoring" else world.gate).clear()
    for _ in range(5):
        await world.request()
    if state != "created":
        await until_async(lambda: len(world.asked) == 2)
    kept = tuple(each for each in world.members if each.key != gone)
    report = await asyncio.wait_for(world.live.update(BASE, kept, Notes()), 10)
    assert (report.ended, report.left) == (0, ())
    world.gate.set()
    world.scoring.set()
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (0, {"change": 5})
    assert len(world.engine.held) == 2


async def test_copies_of_models_that_stay_outlive_an_update_and_new_ones_wait_for_it() -> None:
    world = World(running=1, waiting=3)
    world.gate.clear()
    for _ in range(2):
        await world.request()
    await until_async(lambda: len(world.asked) == 1)
    await world.live.update(BASE, world.members[:2], Notes(), world.design)
    world.gate.set()
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (1, {"change": 1})
    async with world.live._change():
        await world.request()
        await world.settled()
    await world.request()
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (2, {"change": 2})


async def test_a_model_that_is_removed_alone_is_free_at_once() -> None:
    world = World()
    world.gate.clear()
    await world.request()
    await until_async(lambda: len(world.asked) == 1)
    assert await world.live.remove("b", wait_seconds=10)
    await world.request()
    assert (await world.settled()).dropped == {"change": 2}


async def test_the_end_of_the_server_does_not_wait_for_copies() -> None:
    world = World(running=2, waiting=3)
    world.gate.clear()
    for _ in range(5):
        await world.request()
    await until_async(lambda: len(world.asked) == 2)
    assert await asyncio.wait_for(world.live.drain(), 10) == 0
    await world.request()  # one that was in flight, and has ended meanwhile
    await world.shadow.close()
    await world.shadow.close()
    await world.request()
    tally = await world.settled()
    assert (tally.copies, tally.dropped) == (0, {"change": 7})
    assert not world.live.leases.things()


async def test_closing_ends_those_that_run_and_those_that_wait() -> None:
    world = World(running=2, waiting=3)
    world.gate.clear()
    for _ in range(5):
        await world.request()
    await until_async(lambda: len(world.asked) == 2)
    await world.shadow.close()
    assert not world.shadow._running
    assert (await world.settled()).dropped == {"change": 5}


# -- what goes wrong ----------------------------------------------------------------------------


async def test_errors_of_the_other_model_are_counted() -> None:
    world = World()
    world.status = 400
    await world.request()
    await world.settled()
    world.error = EngineDead("gone")
    await world.request()
    tally = await world.settled()
    assert (tally.copies, tally.failed) == (0, {"400": 1, "EngineDead": 1})


async def test_a_fault_of_ours_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.error = ValueError("x")
    with caplog.at_level(logging.ERROR):
        await world.request()
        assert (await world.settled()).failed == {"ValueError": 1}
    assert "a copy of a request to a failed" in caplog.text


async def test_texts_are_kept_only_where_they_may_be() -> None:
    silent, told = World(), World(samples=2)
    for at in range(5):
        told.text = f"answer {at}"
        await silent.request()
        await told.request()
        await silent.settled()
        await told.settled()
    assert not silent.shadow.findings.samples
    assert [each.copy_answer for each in told.shadow.findings.samples] == ["answer 3", "answer 4"]
    assert told.shadow.findings.samples[0].request == {"prompt": "x", "temperature": 0}
    assert told.shadow.findings.samples[0].outcome == "different"


async def test_only_the_newest_contents_are_remembered() -> None:
    world = World()
    for number in range(150):
        members = (world.members[0], member("b", 10 + number))
        await world.live.update(BASE, members, Notes(), world.design)
        await world.request()
        await world.settled()
    assert len(world.shadow.findings.tallies) == 100
    newest = next(reversed(world.shadow.findings.tallies))
    assert newest.shadow == members[1].content.digest
