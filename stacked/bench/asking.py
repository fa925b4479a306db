"""One greedy completion, whole or as a stream, with its headers and its token ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import httpx

from stacked.bench.check import BASE, References, Tokens
from stacked.client import credential

_PREFIX = """A river starts as a thin line of water high in the hills. Rain falls on the stones, \
runs down between them, and gathers in a small pool. From the pool it goes on over grass and sand, \
past a farm with a red roof, under an old bridge, and through the middle of the town. People stand \
on the bridge in the evening and look at the boats. Some of the boats carry wood, others carry \
fruit, and one of them carries only music. At night the lamps along the water are lit one after \
another, and the whole valley is quiet until the first train arrives in the morning. """
PROMPTS = (
    "The quick brown fox",
    "What is the capital of France?",
    f"{_PREFIX}The name of the river is",
    f"{_PREFIX}What do the boats carry? They carry",
)
"""The last two share a beginning of more than a block of the prefix cache."""


class Refused(Exception):
    """The server answered with an error, or the answer was cut short."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Got:
    """The part of an answer received so far."""

    digest: str = ""
    generation: int = 0
    key: str = ""
    tokens: list[int] = field(default_factory=list)


def body(key: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Exactly `max_tokens` greedy tokens, as ids: a text can hide a different token."""
    return {
        "model": key,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


async def plain(client: httpx.AsyncClient, request: dict[str, Any], got: Got) -> None:
    """Fill `got` with the whole answer. Raises Refused."""
    async with _answered(client, request, got) as response:
        got.tokens += _tokens(await response.aread())


async def stream(
    client: httpx.AsyncClient, request: dict[str, Any], got: Got
) -> AsyncGenerator[None, None]:
    """Fill `got` as tokens arrive, yielding after each event. Raises Refused."""
    async with _answered(client, request | {"stream": True}, got) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                got.tokens += _tokens(line.removeprefix("data: "))
                yield
    raise Refused("StreamCut", "the stream ended without [DONE]")


@asynccontextmanager
async def _answered(
    client: httpx.AsyncClient, request: dict[str, Any], got: Got
) -> AsyncIterator[httpx.Response]:
    """A successful response, whose headers are in `got`. Raises Refused."""
    try:
        async with client.stream("POST", "/v1/completions", json=request) as response:
            if response.status_code != 200:
                raise _refused(response.status_code, await response.aread())
            got.digest = response.headers.get("model-digest", "")
            got.generation = int(response.headers.get("model-generation", "0"))
            got.key = unquote(response.headers.get("model-key", ""))
            yield response
    except httpx.HTTPError as error:
        raise Refused(type(error).__name__, str(error)) from error


async def references(
    url: str, group: int, keys: dict[str, str], base: str, max_tokens: int
) -> dict[tuple[int, str, int], Tokens]:
    """Every answer of a server that serves only this group, requested one at a time.

    `keys` maps inference keys to digests. Raises Refused.
    """
    found: dict[tuple[int, str, int], Tokens] = {}
    async with httpx.AsyncClient(base_url=url, timeout=600, auth=credential()) as client:
        for key, digest in {base: BASE, **keys}.items():
            for number, prompt in enumerate(PROMPTS):
                got = Got()
                await plain(client, body(key, prompt, max_tokens), got)
                if got.digest != digest:
                    raise Refused("OtherModel", f"{key} is answered by {got.digest}, not {digest}")
                found[group, digest, number] = tuple(got.tokens)
    return found


def apart(found: References) -> tuple[int, int]:
    """How many of the (model, prompt) pairs have an answer that no other model gives; of how many.

    A model that answers like another cannot show that the wrong one answered.
    """
    by_pair = {(digest, prompt): tokens for (_, digest, prompt), tokens in found.items()}
    given = Counter((prompt, tokens) for (_, prompt), tokens in by_pair.items())
    return sum(count == 1 for count in given.values()), len(by_pair)


def _tokens(content: str | bytes) -> list[int]:
    """The token ids in a whole answer, or in one event of a stream."""
    try:
        tree = json.loads(content)
        if "error" in tree:
            raise _refused(200, content)
        ids = [token for choice in tree["choices"] for token in choice.get("token_ids") or ()]
        return [int(token) for token in ids]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused("Malformed", f"not an answer: {content[:200]!r}") from error


def _refused(status: int, content: str | bytes) -> Refused:
    try:
        error = json.loads(content)["error"]
        return Refused(str(error["code"]), str(error["message"])[:200])
    except (ValueError, KeyError, TypeError):
        return Refused(f"HTTP{status}", f"{content[:200]!r}")
