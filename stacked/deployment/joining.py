"""How a server gets into its fleet: the first founds it, others serve what is committed there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from stacked.deployment.ledger import Ledger
from stacked.deployment.settling import settle
from stacked.errors import RegistryUnusable, StackedError
from stacked.fleet.shared import Fleet, Found, Look, Mode
from stacked.registry import Deployment
from stacked.registry.fleets import FleetStore

logger = logging.getLogger("stacked.deployment.joining")

# A server that runs claims its records again within one of these when the database was away.
_LOOK_SECONDS = 15.0
_TRIES = 10


async def end_what_others_left(ledger: Ledger) -> None:
    """End the work of servers of the fleet that were killed, in a task without an end.

    What the fleet itself was updated to is not among it: `settle` does that at once.
    """
    gone: frozenset[int] = frozenset()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            gone = await ledger.do(ledger.registry.recover_others, gone)
        except StackedError as error:
            logger.warning("what other servers have left is not ended: %s", error)
            gone = frozenset()


class Joining:
    """The start of one server. Every method blocks."""

    def __init__(self, ledger: Ledger, store: FleetStore, mode: Mode) -> None:
        self._ledger, self._store, self._mode = ledger, store, mode

    def committed(self) -> Deployment | None:
        """The fleet's deployment, with what is committed; None: there is no fleet yet."""
        fleet = self._carried_out(Look())
        if fleet is None:
            return None
        if fleet.mode is not self._mode and self._ledger.registry.alone:
            self._store.set_mode(self._mode)
        held = self._ledger.last_active()
        assert held is not None, "a fleet is founded with a deployment"
        settle(self._ledger.registry, held.id, fleet, gone=False)
        return replace(held, group_id=fleet.group, generation=fleet.generation)

    def found(self, group_id: str, begin: Callable[[], Deployment]) -> Deployment:
        """Found the fleet with the deployment that `begin` records, or join the one that is there.

        `group_id` is loaded here. The generation is 0 where that is not what is committed.
        """
        with self._ledger.registry.turn():
            held = self.committed()
            if held is None:
                held = begin()
                founded = Fleet(self._mode, held.generation, str(held.group_id), held.generation)
                self._carried_out(Found(founded))
        return held if held.group_id == group_id else replace(held, generation=0)

    def _carried_out(self, operation: Look | Found) -> Fleet | None:
        """What is there then. A start has the time to repeat what has no answer in a second."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(RegistryUnusable):
                return self._store.carry_out("", operation).fleet
        return self._store.carry_out("", operation).fleet
