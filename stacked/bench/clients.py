"""Clients of servers under test, each in its own thread, and what they got and when.

For gaps: endless streams, first tokens, and refused requests. For the storm: all ways of a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import httpx

from stacked.bench.asking import PROMPTS, Got, Refused, body, plain, stream
from stacked.bench.check import Answer, Refusal
from stacked.client import credential

_WAYS = ("plain", "plain", "stream", "stream", "cut", "early")
"""What a client does: `cut` disconnects in the middle of a stream, `early` before its answer."""

_PLAIN = ("plain", "early")
_EARLY_SECONDS = 0.1
"""A client that disconnects early does so within this: before, or just as, its answer begins."""

_PROMPT = "The bridge over the river is old, and in the evening people stand on it and"
_ABSENT = "no-such-key"


class Clients(ABC):
    """Runs from entering the block to leaving it, which raises its fault, if any."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "bench-clients")

    def __enter__(self) -> Self:
        self._ended = self._pool.submit(asyncio.run, self._all())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._ended.result()

    @property
    def failed(self) -> bool:
        """Whether the clients have ended early, by a fault of the benchmark."""
        return self._ended.done()

    async def _all(self) -> None:
        # Idle connections are closed earlier than by a server: otherwise both may do so at once.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=300, limits=limits, auth=credential()
        ) as client:
            await self._work(client)

    @abstractmethod
    async def _work(self, client: httpx.AsyncClient) -> None:
        """Until `_stop` is set."""


class Streams(Clients):
    """`count` endless streams of one key, and when their tokens arrived."""

    def __init__(self, url: str, key: str, count: int, tokens: int) -> None:
        super().__init__(url)
        self.arrivals: list[list[float]] = []
        """For each stream: when its events arrived, on the monotonic clock."""
        self._key, self._count, self._tokens = key, count, tokens

    async def _work(self, client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._count):
                tasks.create_task(self._one(client, number))

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            times: list[float] = []
            self.arrivals.append(times)
            request = body(self._key, f"Story number {number}: once upon a time", self._tokens)
            async for _event in stream(client, request, Got()):
                times.append(time.monotonic())
                if self._stop.is_set():
                    return


class Waits(Clients):
    """One request again and again; `times` has when each was sent and its seconds."""

    pause: float
    """Seconds between two of them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.times: list[tuple[float, float]] = []

    async def _work(self, client: httpx.AsyncClient) -> None:
        for number in itertools.count(1):
            if self._stop.is_set():
                return
            sent = time.monotonic()
            await self._request(client, number)
            self.times.append((sent, time.monotonic() - sent))
            await asyncio.sleep(self.pause)

    @abstractmethod
    async def _request(self, client: httpx.AsyncClient, number: int) -> None:
        """Returns at the moment that is timed."""


class FirstTokens(Waits):
    """A short request of one key, up to its first token."""

    pause = 0.2

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url)
        self._key = key

    async def _request(self, client: httpx.AsyncClient, number: int) -> None:
        # A new prompt each time: the prefix cache has the others.
        async for _event in stream(client, body(self._key, f"{number} {_PROMPT}", 1), Got()):
            break


class Door(Waits):
    """Requests for an unknown key, which need no engine: their time is the server's own."""

    pause = 0.002

    async def _request(self, client: httpx.AsyncClient, number: int) -> None:
        response = await client.post("/v1/completions", json=body(_ABSENT, "Nobody is here", 1))
        if response.status_code != 404:
            raise Refused("NotRefused", f"{_ABSENT} got HTTP {response.status_code}")


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
