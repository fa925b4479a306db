"""What the storm's clients make of answers, errors and streams that break off."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import httpx
import pytest

from stacked.bench.asking import Got, Refused, body, plain, stream

HEADERS = {"model-digest": "sha256:a", "model-generation": "7", "model-key": "x"}
DONE = "data: [DONE]\n\n"


def event(*tokens: int) -> str:
    return f"data: {json.dumps({'choices': [{'text': '', 'token_ids': tokens}]})}\n\n"


def answering(content: str, status: int = 200) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=content, headers=HEADERS)

    return httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(answer))


def failing(error: Callable[[str], Exception]) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error("gone")

    return httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(answer))


async def streamed(client: httpx.AsyncClient) -> Got:
    got = Got()
    async with client:
        async for _ in stream(client, body("x", "hi", 4), got):
            pass
    return got


async def asked(client: httpx.AsyncClient) -> Got:
    got = Got()
    async with client:
        await plain(client, body("x", "hi", 4), got)
    return got


async def test_whole_answer_brings_its_headers_and_tokens() -> None:
    got = await asked(answering(json.dumps({"choices": [{"token_ids": [1, 2]}]})))
    assert got == Got("sha256:a", 7, "x", [1, 2])


async def test_stream_brings_its_headers_and_the_tokens_of_all_events() -> None:
    got = await streamed(answering(event(1) + event(2, 3) + DONE))
    assert got == Got("sha256:a", 7, "x", [1, 2, 3])


async def test_stream_without_its_end_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        await streamed(answering(event(1) + event(2)))
    assert refused.value.code == "StreamCut"


async def test_error_in_a_stream_is_refused_with_its_code() -> None:
    error = json.dumps({"error": {"code": "DrainExpired", "message": "late"}})
    with pytest.raises(Refused, match="late") as refused:
        await streamed(answering(event(1) + f"data: {error}\n\n"))
    assert refused.value.code == "DrainExpired"


@pytest.mark.parametrize("ask", [asked, streamed])
async def test_error_answer_is_refused_with_its_code(
    ask: Callable[[httpx.AsyncClient], Awaitable[Got]],
) -> None:
    error = json.dumps({"error": {"code": "KeyUnknown", "message": "no"}})
    with pytest.raises(Refused) as refused:
        await ask(answering(error, 404))
    assert refused.value.code == "KeyUnknown"


@pytest.mark.parametrize("ask", [asked, streamed])
async def test_lost_connection_is_refused_by_its_name(
    ask: Callable[[httpx.AsyncClient], Awaitable[Got]],
) -> None:
    with pytest.raises(Refused) as refused:
        await ask(failing(httpx.ReadError))
    assert refused.value.code == "ReadError"


@pytest.mark.parametrize("content", ["", "[]", '{"choices": 3}', "<html>"])
async def test_what_is_not_an_answer_is_refused(content: str) -> None:
    with pytest.raises(Refused) as refused:
        await asked(answering(content))
    assert refused.value.code == "Malformed"
