"""Requests of the server's own, on a real engine, next to those of clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from stacked.api.gateway import Gateway
from stacked.core import Adapter
from stacked.engine import turns
from stacked.engine.loaded import Loaded
from stacked.engine.pieces import PIECE
from stacked.errors import EngineDead, ParameterInvalid, TimeExceeded
from stacked.fairness import Share
from stacked.groups.routing import Route
from stacked.serving.inside import Answer, ask
from stacked.serving.vllm import VllmServing
from stacked.stack import SyncStack
from stacked.store import AdapterStore
from tests.conftest import PROMPT, TinyModels
from tests.waiting import until_async

pytestmark = pytest.mark.engine

T = TypeVar("T")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LATER = Share(batch=True)
BODIES: list[tuple[str, dict[str, Any]]] = [
    (TEXT, {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 1}),
    (TEXT, {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8, "seed": 1},
    ),
]
LONG = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True}


def serving_of(stack: SyncStack) -> VllmServing:
    return stack._stack.service.vllm


def run(stack: SyncStack, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    done: T = stack._portal.call(work)
    return done


def asked(stack: SyncStack, key: str, path: str, body: dict[str, Any]) -> Answer:
    serving = serving_of(stack)
    route = serving.live.routing.resolve(key)
    return run(stack, partial(ask, serving, route, path, body, share=LATER))


def client_of(stack: SyncStack) -> httpx.AsyncClient:
    """A client of the gateway over the same service."""
    app: Any = Gateway(stack._stack.service, None)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://inside")


def in_engine(serving: VllmServing) -> int:
    states: dict[str, Any] = serving.engine.client.output_processor.request_states
    return len(states)


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("key", ["base", "a", "b"])
def test_answer_is_that_of_the_same_request_over_http(
    stack: SyncStack, key: str, path: str, body: dict[str, Any]
) -> None:
    async def over_http() -> Any:
        async with client_of(stack) as client:
            return (await client.post(path, json={**body, "model": key})).json()

    answer, wanted = asked(stack, key, path, body), run(stack, over_http)
    assert answer.status == 200
    found = answer.json()
    assert (found["choices"], found["model"]) == (wanted["choices"], key)
    usage = found["usage"]
    tokens = (usage["prompt_tokens"], usage["completion_tokens"])
    assert (answer.prompt_tokens, answer.generated_tokens) == tokens


def test_an_adapter_that_is_staged_answers_and_is_not_served(
    stack: SyncStack, tiny_models: TinyModels, tmp_path: Path
) -> None:
    serving = serving_of(stack)
    source = str(tiny_models.adapters["c"])
    content = AdapterStore(tmp_path).add(source, base=serving.modules)
    path, body = BODIES[0]

    async def staged() -> Answer:
        handle = await serving.engine.load(Adapter.of(content))
        route = _route(serving, handle)
        try:
            return await ask(serving, route, path, body, share=LATER)
        finally:
            await serving.engine.remove(handle)

    text = run(stack, staged).json()["choices"][0]["text"]
    others = {asked(stack, key, path, body).json()["choices"][0]["text"] for key in ("base", "a")}
    assert text not in others
    assert stack.keys == ["base", "a", "b"]


def _route(serving: VllmServing, handle: Loaded) -> Route[Loaded]:
    served = serving.live.routing.resolve("a")
    return served._replace(label="new", key="new", digest=handle.digest, handle=handle)


def test_a_cancelled_request_leaves_the_engine_and_its_lease(stack: SyncStack) -> None:
    serving = serving_of(stack)

    async def cancelled() -> None:
        route = serving.live.routing.resolve("a")
        tasks = [
            asyncio.create_task(ask(serving, route, TEXT, {**LONG, "stream": even}, share=LATER))
            for even in (False, True)
        ]
        await until_async(lambda: in_engine(serving) == len(tasks))
        assert serving.live.leases.held(route.handle) == len(tasks)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError)
        assert serving.live.leases.held(route.handle) == 0
        await until_async(lambda: in_engine(serving) == 0)

    run(stack, cancelled)


def test_a_request_ends_in_time_and_when_its_lease_is_ended(stack: SyncStack) -> None:
    serving = serving_of(stack)

    async def late() -> None:
        route = serving.live.routing.resolve("a")
        with pytest.raises(TimeExceeded):
            await ask(serving, route, TEXT, LONG, share=LATER, seconds=0)
        task = asyncio.create_task(ask(serving, route, TEXT, LONG, share=LATER))
        await until_async(lambda: in_engine(serving) == 1)
        serving.live.leases.end(route.handle, EngineDead("as if"))
        with pytest.raises(EngineDead, match="as if"):
            await task
        await until_async(lambda: in_engine(serving) == 0)

    run(stack, late)


def test_what_the_app_refuses_is_its_answer_and_what_the_door_refuses_is_raised(
    stack: SyncStack,
) -> None:
    assert asked(stack, "a", TEXT, {"prompt": PROMPT, "max_tokens": 10**6}).status == 400
    with pytest.raises(ParameterInvalid, match="max_token'"):
        asked(stack, "a", TEXT, {"prompt": PROMPT, "max_token": 1})
    with pytest.raises(ParameterInvalid, match="runs no model"):
        asked(stack, "a", "/health", {})


def test_clients_go_first_at_a_busy_engine(stack: SyncStack) -> None:
    serving = serving_of(stack)
    seats = serving.engine.client.vllm_config.scheduler_config.max_num_seqs
    body = {**LONG, "max_tokens": 24}

    async def busy() -> int:
        """How many of the server's own were left when the last client had its answer."""
        route = serving.live.routing.resolve("a")
        own = [
            asyncio.create_task(ask(serving, route, TEXT, body, share=LATER))
            for _ in range(4 * seats)
        ]
        await until_async(lambda: in_engine(serving) > seats // 2)
        async with client_of(stack) as client:
            posts = [client.post(TEXT, json={**body, "model": "b"}) for _ in range(seats)]
            for answer in await asyncio.gather(*posts):
                assert answer.status_code == 200
        left = sum(not task.done() for task in own)
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        await until_async(lambda: in_engine(serving) == 0)
        return left

    # In their order of arrival, all of them would have had their answers before.
    assert run(stack, busy) > 2 * seats


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, {"prompt": PROMPT, "prompt_logprobs": 0}),
        (TEXT, {"prompt": PROMPT, "echo": True, "logprobs": 0}),
        (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 1}),
    ],
)
def test_logprobs_of_prompts_are_refused_where_they_would_end_the_engine(
    stack: SyncStack, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    body = {**body, "max_tokens": 1}
    assert asked(stack, "a", path, body).status == 200
    monkeypatch.setattr(serving_of(stack).engine.args, "kv_sharing_fast_prefill", True)
    refused = asked(stack, "a", path, body)
    assert refused.status == 400
    assert "engine.kv_sharing_fast_prefill" in refused.json()["error"]["message"]
    del body["logprobs" if "echo" in body else "prompt_logprobs"]
    assert asked(stack, "a", path, body).status == 200


def test_own_prompts_are_read_in_pieces_while_a_clients_tokens_are_made(stack: SyncStack) -> None:
    engine = serving_of(stack).engine
    prompt = [3 + number % 200 for number in range(8 * PIECE)]

    async def read(own: bool, clients: list[int]) -> tuple[int, list[float]]:
        """How many tokens a client gets while a prompt is read, and the prompt's logprobs."""
        sampling = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        turns.share.set(Share(batch=True, background=own))
        before = len(clients)
        (output,) = await engine.generate([prompt], None, request_id=f"r-{own}", sampling=sampling)
        rows = zip(output.prompt_logprobs[1:], prompt[1:], strict=True)
        return len(clients) - before, [row[token].logprob for row, token in rows]

    async def both() -> tuple[tuple[int, list[float]], tuple[int, list[float]]]:
        clients: list[int] = []

        async def client() -> None:
            sampling = {"max_tokens": 150, "temperature": 0, "ignore_eos": True}
            async for output in engine.stream(PROMPT, None, request_id="client", sampling=sampling):
                clients.append(len(output.outputs[0].token_ids))

        task = asyncio.create_task(client())
        await until_async(lambda: bool(clients))
        found = await read(False, clients), await read(True, clients)
        await task
        return found

    (whole, expected), (pieces, logprobs) = run(stack, both)
    assert pieces >= 7 > whole
    assert logprobs == pytest.approx(expected, abs=1e-3)
