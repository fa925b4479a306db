"""Clients that send requests without pause, in every way a client can, and record the results."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from stacked.bench.asking import PROMPTS, Got, Refused, body, plain, stream
from stacked.bench.check import Answer, Refusal
from stacked.bench.streams import Clients

_WAYS = ("plain", "plain", "stream", "stream", "cut", "early")
"""What a client does: `cut` disconnects in the middle of a stream, `early` before its answer."""

_PLAIN = ("plain", "early")
_EARLY_SECONDS = 0.1
"""A client that disconnects early does so within this: before, or just as, its answer begins."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What the clients request, and how much."""

    base: str
    lasting: Sequence[str]
    passing: Sequence[str]
    max_tokens: int

    def key(self, chance: random.Random) -> str:
        """The base for a fifth, keys of every group for half, otherwise keys that may be absent."""
        draw = chance.random()
        if draw < 0.2:
            return self.base
        return chance.choice(self.lasting if draw < 0.7 or not self.passing else self.passing)


class Traffic(Clients):
    """`clients` clients in one thread, from entering the block to leaving it."""

    def __init__(self, url: str, mix: Mix, clients: int, seed: int = 0) -> None:
        super().__init__(url)
        self.answers: list[Answer] = []
        self.refusals: list[Refusal] = []
        self.counts: Counter[str] = Counter()
        self._mix, self._clients, self._seed = mix, clients, seed

    @property
    def whole(self) -> int:
        """The number of whole answers so far."""
        return self.counts["plain"] + self.counts["stream"]

    async def _work(self, client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                chance = random.Random(self._seed * 1000 + number)
                tasks.create_task(self._client(client, chance))

    async def _client(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        while not self._stop.is_set():
            key, prompt = self._mix.key(chance), chance.randrange(len(PROMPTS))
            got, sent = Got(), time.monotonic()
            way = chance.choice(_WAYS)
            request = body(key, PROMPTS[prompt], self._mix.max_tokens)
            try:
                whole = await self._one(way, client, request, got, chance)
            except Refused as error:
                refused = Refusal(key, sent, time.monotonic(), error.code, str(error))
                self.refusals.append(refused)
                self.counts["refused"] += 1
                await asyncio.sleep(0.01)  # a refusal costs nothing: do not only ask for them
                continue
            if whole is None:
                self.counts["aborted before its answer"] += 1
                continue
            ended, tokens = time.monotonic(), tuple(got.tokens)
            self.answers.append(
                Answer(
                    *(key, prompt, sent, ended, got.digest, got.generation, tokens, whole, got.key)
                )
            )
            self._count("plain" if way in _PLAIN else "stream", whole, key, prompt)

    def _count(self, kind: str, whole: bool, key: str, prompt: int) -> None:
        self.counts[kind if whole else "aborted in its answer"] += 1
        if key == self._mix.base:
            self.counts["of the base"] += 1
        if prompt >= 2:
            self.counts["with a shared prefix"] += 1

    async def _one(
        self,
        way: str,
        client: httpx.AsyncClient,
        request: dict[str, object],
        got: Got,
        chance: random.Random,
    ) -> bool | None:
        """True for a whole answer, False for a part of one, None for none."""
        if way in _PLAIN:
            try:
                async with asyncio.timeout(
                    chance.uniform(0.0, _EARLY_SECONDS) if way == "early" else None
                ):
                    await plain(client, request, got)
            except TimeoutError:
                return None
            return True
        enough = chance.randint(1, self._mix.max_tokens - 1) if way == "cut" else math.inf
        async with contextlib.aclosing(stream(client, request, got)) as events:
            async for _event in events:
                if len(got.tokens) >= enough:
                    return False
        return True
