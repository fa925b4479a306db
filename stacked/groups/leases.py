"""Who is using an adapter now: leases that are released exactly once, and waiting for the last.

A lease is taken where a request is admitted and held until its last byte. All methods are
synchronous, so that nothing can come between a check and a change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Thing = TypeVar("Thing")


class Lease:
    """The right to use one thing until released. Releasing twice is allowed."""

    __slots__ = ("_leases", "_thing", "end", "yields")

    def __init__(
        self,
        leases: Leases[Any],
        thing: Hashable,
        end: Callable[..., object] | None = None,
        *,
        yields: bool = False,
    ) -> None:
        self._leases: Leases[Any] | None = leases
        self._thing = thing
        self.end = end
        self.yields = yields

    def release(self) -> None:
        leases, self._leases = self._leases, None
        if leases is not None:
            leases._returned(self._thing, self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Leases(Generic[Thing]):
    """The leases of each thing, and the waiters for their end."""

    def __init__(self) -> None:
        self._held: dict[Thing, set[Lease]] = {}
        self._waiting: dict[Thing, list[asyncio.Future[None]]] = {}
        self._ending = False

    def take(self, thing: Thing, end: Callable[..., object] | None = None) -> Lease:
        """A lease on `thing`. `end` is called to end its holder at once; see `end`."""
        lease = Lease(self, thing, end)
        self._held.setdefault(thing, set()).add(lease)
        return lease

    def lend(self, thing: Thing, end: Callable[..., object]) -> Lease | None:
        """A lease for what nobody waits for: who waits for `thing` ends it at once.

        None while anyone does.
        """
        if self._ending or self._waiting.get(thing):
            return None
        lease = Lease(self, thing, end, yields=True)
        self._held.setdefault(thing, set()).add(lease)
        return lease

    def held(self, thing: Thing) -> int:
        return len(self._held.get(thing, ()))

    def things(self) -> list[Thing]:
        """What is held now. From any thread."""
        return list(self._held)

    def end(self, thing: Thing, *why: Exception) -> int:
        """End every holder of `thing` at once, each with the reason; returns how many."""
        asked = [lease for lease in self._held.get(thing, ()) if lease.end is not None]
        for lease in asked:
            assert lease.end is not None
            lease.end(*why)
        return len(asked)

    def _recall(self, thing: Thing) -> None:
        for lease in [each for each in self._held.get(thing, ()) if each.yields]:
            assert lease.end is not None
            lease.end()

    async def until_free(self, thing: Thing, seconds: float) -> bool:
        """Wait until nothing holds `thing`; False after `seconds`."""
        self._recall(thing)
        if not self.held(thing):
            return True
        free = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(thing, []).append(free)
        try:
            await asyncio.wait_for(free, seconds)
        except TimeoutError:
            return not self.held(thing)
        finally:
            waiting = self._waiting.get(thing, [])
            if free in waiting:
                waiting.remove(free)
        return True

    async def until_all_free(self, seconds: float) -> bool:
        """Wait until nothing is held at all; False after `seconds`. Nothing is lent any more."""
        self._ending = True
        for thing in [*self._held]:
            self._recall(thing)
        deadline = time.monotonic() + seconds
        while self._held:
            thing = next(iter(self._held))
            if not await self.until_free(thing, max(0.0, deadline - time.monotonic())):
                return False
        return True

    def end_all(self, *why: Exception) -> int:
        """End every holder of anything at once, each with the reason; returns how many."""
        return sum(self.end(thing, *why) for thing in list(self._held))

    def _returned(self, thing: Thing, lease: Lease) -> None:
        held = self._held[thing]
        held.discard(lease)
        if held:
            return
        del self._held[thing]
        for free in self._waiting.pop(thing, []):
            if not free.done():
                free.set_result(None)
