"""Whether an engine makes steps: it is asked for a small one while requests wait for it.

An engine answers between two of its steps, so the answer is a sign of life however long the
requests take. It must not know what an engine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from stacked.errors import StackedError

# An engine is asked this many times as often as it may be silent.
_ASKED = 10
# More than this passes between two looks only if this process itself stood still.
_MOST_BETWEEN = 5.0


class Pulse:
    """Of one engine. Look every second; `close` at its end."""

    def __init__(
        self,
        step: Callable[[], Awaitable[None]],
        hang_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step` returns when the engine has made another step."""
        self._step = step
        self._hang = hang_seconds
        self._clock = clock
        self._looked = clock()
        self._silent = self._answered = 0.0
        self._asked: asyncio.Task[None] | None = None

    def hangs(self, *, working: bool) -> bool:
        """Whether it has been silent for too long. `working`: whether requests wait for it."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, _MOST_BETWEEN), now
        if not working:
            self._silent = 0.0
            return False
        if self._asked is not None and not self._asked.done():
            self._silent += passed
            return self._silent > self._hang
        self._silent = 0.0
        self._answered += passed
        if self._asked is None or self._answered >= self._hang / _ASKED:
            self._asked, self._answered = asyncio.create_task(self._ask()), 0.0
        return False

    async def _ask(self) -> None:
        with contextlib.suppress(StackedError):  # a dead engine is noticed elsewhere
            await self._step()

    def close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
