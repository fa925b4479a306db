"""How often a caller may ask, by the minute: the windows, and the headers that show them.

A window slides: of the minute before, the part counts that the last 60 seconds still cover. So a
caller costs four numbers, whatever its rate, and those of callers who left are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import ceil, floor
from typing import NamedTuple

from limits.storage import MemoryStorage

from stacked.callers import Caller
from stacked.errors import TooManyRequests

_MINUTE = 60


class Window(NamedTuple):
    """What a caller has used of one rate: in the minute before, and since `ends - 60` seconds."""

    most: int
    before: int
    now: int
    ends: float
    """Seconds until the present minute is over."""

    @property
    def left(self) -> int:
        return max(0, self.most - floor(self.before * self.ends / _MINUTE + self.now))

    @property
    def opens(self) -> float:
        """Seconds until there is room for one more."""
        if self.now < self.most:
            over = self.now + self.before * self.ends / _MINUTE - self.most
            return max(0.0, over * _MINUTE / self.before) if self.before else 0.0
        return self.ends + _MINUTE * (1 - self.most / self.now)

    @property
    def empties(self) -> float:
        """Seconds until nothing of it is used."""
        if self.now:
            return self.ends + _MINUTE
        return self.ends if self.before else 0.0

    def headers(self, kind: str) -> dict[str, str]:
        """As OpenAI sends them."""
        return {
            f"x-ratelimit-limit-{kind}": str(self.most),
            f"x-ratelimit-remaining-{kind}": str(self.left),
            f"x-ratelimit-reset-{kind}": _duration(self.empties),
        }


class Rates:
    """The rates of all callers that have any."""

    def __init__(self) -> None:
        self._storage = _Counters()

    def admit(self, caller: Caller) -> dict[str, str]:
        """Count one request; see `headers`. Raises TooManyRequests, and then it does not count.

        Tokens are known when a request has ended. It is refused where they are spent, and what it
        takes over the rate is charged to the following minute.
        """
        windows = self._windows(caller)
        for kind, window in windows.items():
            if not window.left:
                raise _spent(kind, window)
        if requests := windows.get("requests"):
            self._storage.count(_key(caller.id, "requests", requests.most), 1)
            windows["requests"] = requests._replace(now=requests.now + 1)
        return _headers(windows)

    def headers(self, caller: Caller) -> dict[str, str]:
        """For every response to this caller; none if it has no rates."""
        return _headers(self._windows(caller))

    def charge(self, caller: Caller, tokens: int) -> None:
        """Count tokens that a request took."""
        most = caller.allowance.tokens_per_minute
        if most is not None and tokens:
            self._storage.count(_key(caller.id, "tokens", most), tokens)

    def _windows(self, caller: Caller) -> dict[str, Window]:
        allowance = caller.allowance
        rates = {
            "requests": allowance.requests_per_minute,
            "tokens": allowance.tokens_per_minute,
        }
        return {
            kind: Window(most, *self._storage.window(_key(caller.id, kind, most)))
            for kind, most in rates.items()
            if most is not None
        }


class _Counters(MemoryStorage):
    """The library's, read and written without its thread that looks for what has expired.

    It would start one for each request.
    """

    _looked = 0.0

    def window(self, key: str) -> tuple[int, int, float]:
        """What was counted in the minute before and in this one, and when this one ends."""
        now = time.time()
        before, minute = self.sliding_window_keys(key, _MINUTE, now)
        return self.storage.get(before, 0), self.storage.get(minute, 0), _MINUTE - now % _MINUTE

    def count(self, key: str, amount: int) -> None:
        """Without a bound: there was room for a request, and tokens have been used."""
        now = time.time()
        if abs(now - self._looked) >= _MINUTE:  # a clock may be set back
            self._looked = now
            for each in [*self.expirations]:
                self.get(each)  # drops what has expired
        _, minute = self.sliding_window_keys(key, _MINUTE, now)
        self.storage[minute] += amount
        self.expirations[minute] = now + 2 * _MINUTE


def _key(id: str, kind: str, most: int) -> str:
    return f"{kind}/{most}/{id}"


def _headers(windows: Mapping[str, Window]) -> dict[str, str]:
    return {k: v for kind, window in windows.items() for k, v in window.headers(kind).items()}


def _spent(kind: str, window: Window) -> TooManyRequests:
    limit = f"{kind}_per_minute"
    return TooManyRequests(
        f"this credential has used its {window.most} {kind} of a minute ({limit}); "
        f"try again in {_duration(window.opens)}",
        limit,
        retry_after=window.opens,
    )


def _duration(seconds: float) -> str:
    """As OpenAI writes them: 120ms, 12s, 1m30s."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
