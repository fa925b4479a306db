"""Clients of the gaps measurement: endless streams, first tokens, and refused requests.

Each runs in its own thread and records when events arrived.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from abc import ABC, abstractmethod
from typing import Self

import httpx

from stacked.bench.asking import Got, Refused, body, stream

_PROMPT = "The bridge over the river is old, and in the evening people stand on it and"
_ABSENT = "no-such-key"


class Clients(ABC):
    """Runs from entering the block to leaving it, which raises its fault, if any."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bench-clients")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001  raised by the thread that waits for this one
            self._failure = error

    @property
    def failed(self) -> bool:
        """Whether the clients have ended early, by a fault of the benchmark."""
        return not self._thread.is_alive()

    async def _all(self) -> None:
        # Idle connections are closed earlier than by a server: otherwise both may do so at once.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        async with httpx.AsyncClient(base_url=self._url, timeout=300, limits=limits) as client:
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
