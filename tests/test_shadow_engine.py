"""Shadow traffic on a real engine: what copies find, and that nothing else knows of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest
from prometheus_client import REGISTRY

from stacked.api.gateway import Gateway
from stacked.config import Design, ShadowConfig, ShadowLimits
from stacked.experiments.comparison import Tally
from stacked.service import Service
from stacked.serving.shadow import Shadow
from stacked.stack import SyncStack
from tests.conftest import PROMPT
from tests.waiting import until_async

pytestmark = pytest.mark.engine

T = TypeVar("T")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GREEDY = {"max_tokens": 8, "temperature": 0}
MESSAGES = {"messages": [{"role": "user", "content": "Name a colour."}]}


def service_of(stack: SyncStack) -> Service:
    return stack._stack.service


@contextmanager
def shadowed(stack: SyncStack, *pairs: ShadowConfig, **limits: Any) -> Iterator[Shadow]:
    """The stack with these shadows, until the block ends."""
    service, live = service_of(stack), service_of(stack).vllm.live
    before = live.routing
    service.shadow = Shadow(ShadowLimits(**{"running": 1, **limits}))
    live.begin(replace(before, design=Design(shadow=pairs)))
    try:
        yield service.shadow
    finally:
        live.begin(before)
        stack._portal.call(service.shadow.close)


def pair(key: str, to: str, percent: float = 100) -> ShadowConfig:
    return ShadowConfig(key=key, to=to, percent=percent)


def run(stack: SyncStack, work: Coroutine[Any, Any, T]) -> T:
    async def working() -> T:
        return await work

    done: T = stack._portal.call(working)
    return done


async def send(service: Service, *requests: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    """Requests through the gateway, one after the other, each after the copies of the last."""
    app: Any = Gateway(service, None)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    answers, shadow = [], service.shadow
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        for path, body in requests:
            answers.append(await client.post(path, json=body))
            assert answers[-1].status_code == 200, answers[-1].text
            await until_async(lambda: not (shadow._running or shadow._waiting))
    return answers


def tally(shadow: Shadow, key: str, to: str) -> Tally:
    (found,) = [
        each for line, each in shadow.findings.tallies.items() if (line.key, line.to) == (key, to)
    ]
    return found


def counted(exclude: str) -> dict[str, float]:
    """Every counter of ours by its labels, but for those of a name."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in REGISTRY.collect()
        if family.name.startswith("stacked_") and not family.name.startswith(exclude)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_sum", "_bucket"))
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [(TEXT, {"prompt": PROMPT}), (CHAT, MESSAGES), ("/predict", {**MESSAGES, "unknown": 1})],
)
def test_copy_for_the_same_model_is_the_same_and_for_another_one_is_not(
    stack: SyncStack, path: str, body: dict[str, Any], stream: bool
) -> None:
    request = {**GREEDY, **body, "model": "a", "stream": stream}
    with shadowed(stack, pair("a", "a"), pair("a", "b")) as shadow:
        run(stack, send(service_of(stack), *[(path, request)] * 2))
        same, other = tally(shadow, "a", "a"), tally(shadow, "a", "b")
    for each in (same, other):
        assert (each.copies, each.greedy, each.failed, each.dropped) == (2, 2, {}, {})
        assert each.logprob.served.count == 2
    assert (same.same, other.same) == (2, 0)
    assert same.tokens.served.value == same.tokens.shadow.value == 8
    assert abs(same.logprob.difference.value) < 1e-4
    assert other.logprob.difference.value < -0.1, "it finds its own answers more probable"


def test_logprobs_are_those_that_the_model_itself_reports(stack: SyncStack) -> None:
    request = {**GREEDY, "prompt": PROMPT, "model": "a", "logprobs": 0}
    with shadowed(stack, pair("a", "b")) as shadow:
        (answer,) = run(stack, send(service_of(stack), (TEXT, request)))
        found = tally(shadow, "a", "b").logprob.served.value
    logprobs = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert found == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-3)


def test_the_part_is_copied_and_clients_and_counts_do_not_notice(stack: SyncStack) -> None:
    body = {**GREEDY, "max_tokens": 4}
    requests = [
        (TEXT, {**body, "prompt": f"{PROMPT} {at}", "model": "ab"[at % 2]}) for at in range(20)
    ]
    service = service_of(stack)
    run(stack, send(service, *requests[:2]))  # every series is there then
    before = counted("stacked_shadow")
    plain = run(stack, send(service, *requests))
    middle = counted("stacked_shadow")
    with shadowed(stack, pair("a", "b", 20)) as shadow:
        copied = run(stack, send(service, *requests))
        after = counted("stacked_shadow")
        assert 1 <= tally(shadow, "a", "b").copies <= 3
        assert service.vllm.live.leases.things() == []
    assert {name: after[name] - middle[name] for name in after} == {
        name: middle[name] - before[name] for name in middle
    }
    for one, other in zip(plain, copied, strict=True):
        assert one.json()["choices"] == other.json()["choices"]
        assert one.json()["usage"] == other.json()["usage"]
        assert one.headers.keys() == other.headers.keys()


@pytest.mark.parametrize("why", ["load", "change"])
def test_copies_leave_the_engine_at_once(stack: SyncStack, why: str) -> None:
    """A request has to wait for its turn, or the model is to be removed."""
    service = service_of(stack)
    states = service.vllm.engine.client.output_processor.request_states
    leases, handle = service.vllm.live.leases, service.vllm.live.routing.resolve("b").handle
    request = {**GREEDY, "max_tokens": 200, "ignore_eos": True, "prompt": PROMPT, "model": "a"}

    async def left() -> None:
        answering = asyncio.create_task(send(service, (TEXT, request)))
        await until_async(lambda: leases.held(handle) == 2 and states)  # the copy, and in the app
        if why == "load":
            service.vllm.app.state.turns.crowded()
        else:
            assert await leases.until_free(handle, 60)
        await answering
        await until_async(lambda: not states)
        assert leases.things() == []

    with shadowed(stack, pair("a", "b")) as shadow:
        run(stack, left())
        assert tally(shadow, "a", "b").dropped == {why: 1}
