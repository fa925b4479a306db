"""What is in flight on the whole server, by caller and by inference key, within `server.limits`.

Every count is given back when its request ends, however it ends. The bounds of a single request are
in `serving/bounds.py`, those of a connection in `protocol.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from starlette.types import Message, Receive, Scope

from stacked.api.rates import Rates
from stacked.callers import ANYONE, Caller, caller_of
from stacked.config import ServerConfig
from stacked.errors import BodyTooSlow, TooManyRequests

# When a place becomes free is not known; a request that ends frees one.
_RETRY_SECONDS = 1.0


class Places:
    """So many of one thing. `limit` is the name of their limit."""

    def __init__(self, limit: str, most: int) -> None:
        self._limit = limit
        self._most = most
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, name: str, count: int, most: int, limit: str) -> None:
        """Take places in a name that may have `most` of them. Raises TooManyRequests."""
        if self._total + count > self._most:
            raise _busy(f"this server has all of its {self._most} {self._limit}", self._limit)
        if self._taken[name] + count > most:
            raise _busy(f"{name!r} has all of its {most} {self._limit}", limit)
        self._taken[name] += count
        self._total += count

    def give_back(self, name: str, count: int) -> None:
        self._total -= count
        self._taken[name] -= count
        if not self._taken[name]:
            del self._taken[name]


class Limits:
    """The counts of one server."""

    def __init__(self, server: ServerConfig) -> None:
        self.config = server.limits
        self.body_bytes = server.max_body_bytes
        self.rates = Rates()
        self.bodies = Places("bodies_bytes", max(self.config.bodies_bytes, self.body_bytes))
        self._requests = Places("requests", self.config.requests)
        self._of_keys = Places("sequences", self.config.sequences)
        self._of_callers = Places("sequences", self.config.sequences)

    @contextlib.contextmanager
    def admitted(self, caller: Caller, headers: dict[str, str]) -> Iterator[None]:
        """One more request to a model, for as long as it is open. Raises TooManyRequests.

        `headers`, of the response, show what is left of the caller's rates.
        """
        most, limit = caller.allowance.concurrency, "concurrency"
        if most is None:
            most, limit = self.share_of(self.config.requests, caller), "requests_per_caller"
        self._requests.take(caller.id, 1, most, limit)
        try:
            headers |= self.rates.admit(caller)
            yield
        finally:
            self._requests.give_back(caller.id, 1)

    @contextlib.contextmanager
    def queued(self, caller: Caller, key: str, sequences: int) -> Iterator[None]:
        """The sequences of a request, until it has its answer. Raises TooManyRequests."""
        most = self.config.sequences
        mine, keys = self.share_of(most, caller), self.config.share_of(most)
        self._of_callers.take(caller.id, sequences, mine, "sequences_per_caller")
        try:
            self._of_keys.take(key, sequences, keys, "sequences_per_key")
            try:
                yield
            finally:
                self._of_keys.give_back(key, sequences)
        finally:
            self._of_callers.give_back(caller.id, sequences)

    def share_of(self, most: int, caller: Caller) -> int:
        return most if caller is ANYONE else self.config.share_of(most)


class Intake:
    """A `receive` of a body that comes in time, and whose bytes are counted until `release`."""

    def __init__(self, receive: Receive, scope: Scope, limits: Limits) -> None:
        """The caller is in `scope` when the first byte of a body is read."""
        self._receive = receive
        self._scope = scope
        self._limits = limits
        self._ends: float | None = None
        self._size = 0
        self._held = 0
        self._holder = ""
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        message = await self._in_time()
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        size = len(message.get("body", b""))
        self._size += size
        # What is longer is an upload, which is written to disk part by part.
        self._hold(min(size, self._limits.body_bytes - self._held))
        return message

    def becomes(self, size: int) -> None:
        """The body was decoded, and has this size. Raises TooManyRequests."""
        self._hold(size - self._held)

    def _hold(self, size: int) -> None:
        if size <= 0:
            return
        caller = caller_of(self._scope)
        self._holder = self._holder or caller.id
        limits = self._limits
        most = max(limits.body_bytes, limits.share_of(limits.config.bodies_bytes, caller))
        limits.bodies.take(self._holder, size, most, "bodies_bytes_per_caller")
        self._held += size

    def release(self) -> None:
        """The request has ended."""
        if self._held:
            self._limits.bodies.give_back(self._holder, self._held)
            self._held = 0

    async def _in_time(self) -> Message:
        config = self._limits.config
        now = asyncio.get_running_loop().time()
        self._ends = self._ends or now + config.body_seconds
        seconds, limit = config.idle_seconds, "idle_seconds"
        if self._size <= self._limits.body_bytes and self._ends - now < seconds:
            seconds, limit = self._ends - now, "body_seconds"
        try:
            async with asyncio.timeout(seconds):
                return await self._receive()
        except TimeoutError as error:
            raise BodyTooSlow(
                f"the body did not arrive in time ({limit}: {getattr(config, limit):g}); "
                f"{self._size} bytes of it did",
                limit,
            ) from error


def _busy(what: str, limit: str) -> TooManyRequests:
    return TooManyRequests(
        f"{what} in use ({limit}); try again in a moment", limit, retry_after=_RETRY_SECONDS
    )
