"""Turns at a double of vLLM's client, which shows what the engine has read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from stacked.config import FairnessConfig
from stacked.engine.openai import Report, Selection, _in_turn, selected
from stacked.engine.turns import Turns, share, ticket_of, turns_of, urgent
from stacked.fairness import Capacity, Share, Ticket


class Processor:
    """vLLM's output processor, as far as turns read it."""

    def __init__(self) -> None:
        self.external_req_ids: dict[str, list[str]] = {}
        self.request_states: dict[str, Any] = {}

    def begin(self, id: str) -> None:
        self.external_req_ids[id] = [f"{id}-inner"]
        self.request_states[f"{id}-inner"] = SimpleNamespace(is_prefilling=True)

    def read(self, id: str) -> None:
        self.request_states[f"{id}-inner"].is_prefilling = False
        self.process_outputs()

    def process_outputs(self) -> str:
        return "outputs"


def turns(seats: int = 4, slots: int = 1, step: int = 8) -> tuple[Turns, Processor]:
    processor = Processor()
    return Turns(Capacity(seats, slots, step), FairnessConfig(), processor), processor


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def begun(*tasks: asyncio.Task[None]) -> list[bool]:
    """Which of these have had their turn, once everybody has run as far as possible."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def waiting(turn: Turns, ticket: Ticket, id: str = "x") -> asyncio.Task[None]:
    return asyncio.ensure_future(turn.wait(ticket, id))


def test_turn_comes_when_a_slot_is_free() -> None:
    async def work() -> None:
        turn, _ = turns()
        first, second = Ticket(Share("c", "a"), 1), Ticket(Share("c", "b"), 2)
        await turn.wait(first, "1")
        task = waiting(turn, second)
        assert await begun(task) == [False]
        turn.leave(first, 1, 1)
        assert await begun(task) == [True]
        turn.leave(second)

    run(work())


def test_who_gives_up_gives_the_turn_to_the_next() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        tickets = [Ticket(Share("c", str(at))) for at in range(3)]
        await turn.wait(tickets[0], "0")
        given_up, last = waiting(turn, tickets[1]), waiting(turn, tickets[2])
        assert await begun(given_up, last) == [False, False]
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        turn.leave(tickets[1])
        turn.leave(tickets[0], 1, 1)
        assert await begun(last) == [True]

    run(work())


def test_turn_that_comes_with_the_cancellation_is_given_back() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        tickets = [Ticket(Share("c", str(at))) for at in range(3)]
        await turn.wait(tickets[0], "0")
        cancelled, last = waiting(turn, tickets[1]), waiting(turn, tickets[2])
        await begun(cancelled, last)
        turn.leave(tickets[0], 1, 1)  # the turn is the second's, who is cancelled before it runs
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        turn.leave(tickets[1])
        assert await begun(last) == [True]

    run(work())


def test_prompts_are_let_in_as_the_engine_reads_them() -> None:
    async def work() -> None:
        turn, processor = turns(seats=64, step=8)
        tickets = [Ticket(Share("c", "a"), prompt=32) for _ in range(4)]
        tasks = [waiting(turn, each, str(at)) for at, each in enumerate(tickets)]
        assert await begun(*tasks) == [True, True, False, False]
        processor.begin("0")
        assert processor.process_outputs() == "outputs"
        assert await begun(*tasks) == [True, True, False, False]
        processor.read("0")
        assert await begun(*tasks) == [True, True, True, False]

    run(work())


def test_waiters_of_an_engine_that_died_have_their_turns_to_fail_in() -> None:
    async def work() -> None:
        turn, _ = turns(seats=2)
        tickets = [Ticket(Share("c", "k"), at % 3) for at in range(100)]
        failed: list[int] = []

        async def fails(at: int) -> None:
            try:
                await turn.wait(tickets[at], str(at))
                await dead.wait()
                failed.append(at)
            finally:
                turn.leave(tickets[at])

        dead = asyncio.Event()
        tasks = [asyncio.ensure_future(fails(at)) for at in range(100)]
        assert not any(await begun(*tasks))
        dead.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert sorted(failed) == [*range(100)]

    run(work())


def test_server_has_its_own_requests_let_in_before_all_others() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        first, later = Ticket(Share("c", "a")), Ticket(Share("c", "b"))
        await turn.wait(first, "1")
        task = waiting(turn, later)
        with urgent():
            own = ticket_of({}, SimpleNamespace(max_tokens=2, n=1), None)
        assert share.get() == Share()
        await turn.wait(own, "canary")
        assert await begun(task) == [False]

    run(work())


def test_ticket_knows_the_sizes_and_the_adapter_of_a_request() -> None:
    wanted = SimpleNamespace(max_tokens=7, n=3)
    ticket = ticket_of({"prompt_token_ids": [1, 2, 3]}, wanted, SimpleNamespace(lora_int_id=9))
    assert (ticket.prompt, ticket.most, ticket.seats, ticket.adapter) == (3, 7, 3, 9)
    assert ticket_of("four words of text", wanted, None).prompt == 5


def test_capacity_is_what_vllm_was_started_with() -> None:
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=256),
        lora_config=SimpleNamespace(max_loras=2),
        parallel_config=SimpleNamespace(data_parallel_size=2),
    )
    client = SimpleNamespace(vllm_config=config, output_processor=Processor())
    found = turns_of(client, FairnessConfig())
    assert found is not None
    assert found._queue.capacity == Capacity(16, 2, 512)
    assert turns_of(client, FairnessConfig(enabled=False)) is None


class Client:
    """vLLM's client: each request is two outputs, and fails after one where it is to."""

    def __init__(self) -> None:
        self.priorities: list[int] = []
        self.ranks: list[int | None] = []
        self.fails = False
        self.ends = "length"
        """Why an answer ends."""

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, priority: int = 0, **more: Any
    ) -> AsyncIterator[Any]:
        self.priorities.append(priority)
        self.ranks.append(more.get("data_parallel_rank"))
        for reason in (None, self.ends):
            await asyncio.sleep(0)
            yield SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=[1], finish_reason=reason)],
                prompt_token_ids=[1, 2, 3],
                num_cached_tokens=1,
            )
            if self.fails:
                raise ValueError("the engine has died")

    async def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, *, priority: int = 0, **_: Any
    ) -> AsyncIterator[Any]:
        self.priorities.append(priority)
        await asyncio.sleep(0)
        yield SimpleNamespace(
            outputs=SimpleNamespace(data="a vector"),
            prompt_token_ids=[1, 2, 3],
            num_cached_tokens=0,
        )


def params() -> Any:
    kind = SimpleNamespace(name="DELTA")
    return SimpleNamespace(
        max_tokens=2, n=1, output_kind=kind, prompt_logprobs=None, extra_args=None
    )


async def answered(client: Any, id: str = "x") -> list[Any]:
    return [each async for each in client.generate({"prompt_token_ids": [1, 2, 3]}, params(), id)]


def test_request_waits_runs_and_is_reported() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        client = _in_turn(Client(), turn)
        counted: list[tuple[int, int, bool]] = []
        waited: list[float] = []
        before = selected.set(
            Selection("a", None, Report(lambda *each: counted.append(each), waited.append))
        )
        try:
            first, second = await asyncio.gather(answered(client), answered(client, "y"))
        finally:
            selected.reset(before)
        assert len(first) == len(second) == 2
        assert counted == [(3, 2, True), (3, 2, True)]
        assert len(waited) == 2
        assert min(waited) >= 0
        assert turn._queue._seated == 0

    run(work())


def test_request_of_a_pinned_key_goes_to_an_engine_with_its_cards() -> None:
    async def work() -> None:
        engine = Client()
        client = _in_turn(engine, None, rank_for=lambda cards: 10 * cards[0])
        before = selected.set(Selection("a", None, cards=(3,)))
        try:
            await answered(client)
        finally:
            selected.reset(before)
        await answered(client)
        assert engine.ranks == [30, None]

    run(work())


def test_pooling_request_waits_for_its_turn_too_and_its_prompt_is_counted() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        engine = Client()
        client = _in_turn(engine, turn)
        counted: list[tuple[int, int, bool]] = []
        first = Ticket(Share("c", "a"))
        await turn.wait(first, "first")
        before = selected.set(
            Selection("a", None, Report(lambda *each: counted.append(each), lambda _: None))
        )
        wanted = SimpleNamespace(output_kind=SimpleNamespace(name="FINAL_ONLY"))
        try:
            stream = client.encode(
                prompt={"prompt_token_ids": [1, 2, 3]}, pooling_params=wanted, request_id="x"
            )
            task = asyncio.ensure_future(anext(stream))
        finally:
            selected.reset(before)
        assert await begun(task) == [False]
        assert not engine.priorities
        turn.leave(first)
        assert (await task).outputs.data == "a vector"
        assert [each async for each in stream] == []
        assert counted == [(3, 0, False)]
        assert turn._queue._seated == 0

    run(work())


def test_place_of_a_request_that_fails_or_is_left_is_free_again() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        engine = Client()
        client = _in_turn(engine, turn)
        left = client.generate({"prompt_token_ids": [1]}, params(), "left")
        await anext(left)
        await left.aclose()
        engine.fails = True
        with pytest.raises(ValueError, match="died"):
            await answered(client)
        engine.fails = False
        assert len(await answered(client)) == 2
        assert turn._queue._seated == 0
        assert not turn._reading

    run(work())


def test_what_an_engine_gives_up_as_it_is_ended_is_no_answer() -> None:
    async def work() -> None:
        turn, _ = turns(seats=1)
        engine = Client()
        engine.ends = "abort"
        died: list[str] = []
        before = selected.set(Selection("a", None, died=lambda: died.append("a")))
        try:
            with pytest.raises(EngineDeadError):
                await answered(_in_turn(engine, turn))
        finally:
            selected.reset(before)
        assert died == ["a"]
        assert turn._queue._seated == 0

    run(work())


def test_without_turns_a_request_may_go_after_others_and_not_before_them() -> None:
    async def work() -> None:
        engine = Client()
        client = _in_turn(engine, None)

        async def ask(priority: int) -> None:
            stream = client.generate({"prompt_token_ids": [1]}, params(), "x", priority=priority)
            assert len([each async for each in stream]) == 2

        for priority in (7, 0, -7):
            await ask(priority)
        before = share.set(Share("c", "a", batch=True))
        try:
            await ask(-7)
        finally:
            share.reset(before)
        assert engine.priorities == [7, 0, 0, 1]

    run(work())


def test_logprobs_of_prompts_are_refused_where_they_would_end_the_engine() -> None:
    client = _in_turn(Client(), None, lambda: False)
    wanted = params()
    wanted.prompt_logprobs = 0  # which vLLM lets through
    with pytest.raises(ValueError, match="kv_sharing_fast_prefill"):
        client.generate({"prompt_token_ids": [1]}, wanted, "x")
