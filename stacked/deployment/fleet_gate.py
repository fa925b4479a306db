"""Whether requests are admitted to a replica of a fleet, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from stacked import metrics
from stacked.config import FleetConfig
from stacked.errors import NotReady
from stacked.fleet.replica import Gate, Replica
from stacked.fleet.shared import Mode, View
from stacked.groups.leases import Lease

logger = logging.getLogger("stacked.deployment.fleet")

# What a switch may take longer than its hold: the operation that ends it.
_GRACE_SECONDS = 1.0
_RETRY_SECONDS = 1.0

# It goes on while a machine is suspended, as others' do. Not every system has it.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class FleetGate:
    """What one replica admits. `replica` is None until it has something to serve."""

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self.replica: Replica | None = None
        self.trouble = ""
        """Why what the fleet serves is not served here, if that has failed."""
        self._changed = asyncio.Event()
        self._shown: tuple[object, ...] = ()
        self._held_since = 0.0

    @property
    def now(self) -> Gate:
        """Whether requests are admitted in this step."""
        replica, now = self.replica, clock()
        if replica is None:
            return Gate.CLOSED
        if self._config.on_partition == "serve" and replica.cut_off(now):
            return Gate.OPEN
        return replica.gate(now)

    @property
    def view(self) -> View:
        """What this replica has seen last of the fleet."""
        return View(None, None, None, ()) if self.replica is None else self.replica.view

    @property
    def mode(self) -> Mode:
        fleet = self.view.fleet
        return self._config.mode if fleet is None else fleet.mode

    @property
    def generation(self) -> int:
        """What is loaded here; 0: nothing."""
        return 0 if self.replica is None else self.replica.generation

    @property
    def lease_left(self) -> float:
        """For how many seconds requests may be admitted without the store."""
        return 0.0 if self.replica is None else max(0.0, self.replica.lease_until - clock())

    async def opened(self, after: int = 0) -> None:
        """Return in the step in which a request may be admitted.

        `after`: the generation of an answer that its client has. Raises NotReady.
        """
        until = 0.0
        while not self._admits(after):
            now = time.monotonic()
            until = until or now + self._config.hold_seconds + _GRACE_SECONDS
            if now >= until:
                raise _not_ready("the other replicas have not switched in time")
            await self.change(until - now)

    def check(self, generation: int, lease: Lease) -> None:
        """Raises NotReady, the lease released, unless what this step admitted may be.

        A process may be stopped at any point: only a look after it shows that the gate was open.
        """
        if self.now is not Gate.OPEN or generation != self.generation:
            lease.release()
            raise self.closed()

    def check_ready(self) -> None:
        """Raises NotReady unless requests are admitted, or soon."""
        if self.now is Gate.CLOSED:
            raise self.closed()

    def _admits(self, after: int) -> bool:
        self.check_ready()
        return self.now is Gate.OPEN and (after <= self.generation or self.mode is Mode.GLOBAL)

    def closed(self) -> NotReady:
        """Why nothing is admitted."""
        replica = self.replica
        if replica is not None and replica.leaving:
            return _not_ready("this replica leaves its fleet")
        if replica is not None and replica.cut_off(clock()):
            return _not_ready("this replica does not reach the database that its fleet shares")
        if self.trouble:
            return _not_ready(self.trouble)
        return _not_ready("this replica is no member of its fleet before it has what that serves")

    async def change(self, seconds: float) -> None:
        """Return when gate, generation or membership has changed, or after so long."""
        await within(self._changed, seconds)

    def show(self) -> None:
        """Tell those who wait, if it matters to them."""
        replica, gate = self.replica, self.now
        now = (gate, self.generation, replica is not None and replica.member)
        if now == self._shown:
            return
        was, self._shown = self._shown[:1], now
        if gate is Gate.HELD:
            self._held_since = clock()
        elif was == (Gate.HELD,):
            metrics.fleet_held(clock() - self._held_since)
        logger.debug("gate %s, generation %d", gate.value, self.generation)
        self._changed.set()
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Have the metrics show it."""
        metrics.fleet(self.now.value, self.generation, self.lease_left)


def clock() -> float:
    """The time that leases are counted by."""
    return time.clock_gettime(_CLOCK)


async def within(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if seconds == float("inf") else max(0.0, seconds)):
            await event.wait()


def _not_ready(what: str) -> NotReady:
    error = NotReady(f"{what}; try again, or another replica")
    error.retry_after = _RETRY_SECONDS
    return error
