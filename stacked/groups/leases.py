"""Who is using an adapter now: leases that are released exactly once, and waiting for the last.

A lease is taken where a request is admitted and held until its last byte. All methods are
synchronous, so that nothing can come between a check and a change. It must not know vLLM or HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable
from types import TracebackType


class Lease:
    """The right to use one thing until released. Releasing twice is releasing once."""

    __slots__ = ("_leases", "_thing")

    def __init__(self, leases: Leases, thing: Hashable) -> None:
        self._leases: Leases | None = leases
        self._thing = thing

    def release(self) -> None:
        leases, self._leases = self._leases, None
        if leases is not None:
            leases._returned(self._thing)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Leases:
    """How many leases each thing has, and who waits for it to have none."""

    def __init__(self) -> None:
        self._held: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, list[asyncio.Future[None]]] = {}

    def take(self, thing: Hashable) -> Lease:
        self._held[thing] += 1
        return Lease(self, thing)

    def held(self, thing: Hashable) -> int:
        return self._held[thing]

    def total(self) -> int:
        return self._held.total()

    async def until_free(self, thing: Hashable, seconds: float) -> bool:
        """Wait until nothing holds `thing`; False when that took longer than `seconds`."""
        if not self._held[thing]:
            return True
        free = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(thing, []).append(free)
        try:
            await asyncio.wait_for(free, seconds)
        except TimeoutError:
            return not self._held[thing]
        finally:
            waiting = self._waiting.get(thing, [])
            if free in waiting:
                waiting.remove(free)
        return True

    def _returned(self, thing: Hashable) -> None:
        self._held[thing] -= 1
        if self._held[thing] > 0:
            return
        del self._held[thing]
        for free in self._waiting.pop(thing, []):
            if not free.done():
                free.set_result(None)
