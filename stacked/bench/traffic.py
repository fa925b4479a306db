"""Clients that send requests without pause, in every way a client can, and record the results."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from stacked.bench.asking import PROMPTS, Got, Refused, body, plain, stream
from stacked.bench.check import Answer, Refusal

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


class Traffic:
    """`clients` clients in one thread, from entering the block to leaving it."""

    def __init__(self, url: str, mix: Mix, clients: int, seed: int = 0) -> None:
        self.answers: list[Answer] = []
        self.refusals: list[Refusal] = []
        self.counts: Counter[str] = Counter()
        self._url, self._mix, self._clients, self._seed = url, mix, clients, seed
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bench-traffic")

    @property
    def whole(self) -> int:
        """The number of whole answers so far."""
        return self.counts["plain"] + self.counts["stream"]

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    @property
    def failed(self) -> bool:
        """Whether the clients have ended early, by a fault of the benchmark."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001  raised by the thread that waits for this one
            self._failure = error

    async def _all(self) -> None:
        # Idle connections are closed earlier than by a server: otherwise both may do so at once.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=120, limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(self._clients):
                chance = random.Random(self._seed * 1000 + number)
                tasks.create_task(self._client(client, chance))

    async def _client(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        ways = (self._plain, self._plain, self._stream, self._stream, self._cut, self._early)
        while not self._stop.is_set():
            key, prompt = self._mix.key(chance), chance.randrange(len(PROMPTS))
            got, sent = Got(), time.monotonic()
            way = chance.choice(ways)
            request = body(key, PROMPTS[prompt], self._mix.max_tokens)
            try:
                whole = await way(client, request, got, chance)
            except Refused as error:
                refused = Refusal(key, sent, time.monotonic(), error.code, str(error))
                self.refusals.append(refused)
                self.counts["refused"] += 1
                await asyncio.sleep(0.01)  # a refusal costs nothing: do not only ask for them
                continue
            if whole is None:
                self.counts["aborted before its answer"] += 1
                continue
            self.answers.append(
                Answer(
                    key,
                    prompt,
                    sent,
                    time.monotonic(),
                    got.digest,
                    got.generation,
                    tuple(got.tokens),
                    whole,
                    got.key,
                )
            )
            self._count(way in (self._plain, self._early), whole, key, prompt)

    def _count(self, is_plain: bool, whole: bool, key: str, prompt: int) -> None:
        kind = "plain" if is_plain else "stream"
        self.counts[kind if whole else "aborted in its answer"] += 1
        if key == self._mix.base:
            self.counts["of the base"] += 1
        if prompt >= 2:
            self.counts["with a shared prefix"] += 1

    # -- the ways: True for a whole answer, False for a part of one, None for none ------------

    async def _plain(
        self, client: httpx.AsyncClient, request: dict[str, object], got: Got, _: random.Random
    ) -> bool | None:
        await plain(client, request, got)
        return True

    async def _stream(
        self, client: httpx.AsyncClient, request: dict[str, object], got: Got, _: random.Random
    ) -> bool | None:
        async for _event in stream(client, request, got):
            pass
        return True

    async def _cut(
        self, client: httpx.AsyncClient, request: dict[str, object], got: Got, chance: random.Random
    ) -> bool | None:
        """Disconnect in the middle of a stream."""
        enough = chance.randint(1, self._mix.max_tokens - 1)
        async with contextlib.aclosing(stream(client, request, got)) as events:
            async for _event in events:
                if len(got.tokens) >= enough:
                    return False
        return True

    async def _early(
        self, client: httpx.AsyncClient, request: dict[str, object], got: Got, chance: random.Random
    ) -> bool | None:
        """Disconnect before the answer."""
        try:
            async with asyncio.timeout(chance.uniform(0.0, _EARLY_SECONDS)):
                await plain(client, request, got)
        except TimeoutError:
            return None
        return True
