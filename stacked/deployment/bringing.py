"""A group on its way into what serves here, whose switch may wait for the rest of a fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from stacked.config import Design
from stacked.core import Base, Digest, ModelGroup
from stacked.deployment.activation import Active, Slot
from stacked.deployment.ledger import Ledger
from stacked.errors import NotReady, StackedError, UpdateFailed
from stacked.groups.routing import Routing
from stacked.live import SwapReport
from stacked.phases import Journal
from stacked.serving import Serving
from stacked.serving.settings import ServingSettings, base_key, settings_of
from stacked.steps import Phase

Judge = Callable[[Routing[Any]], Awaitable[None]]


def wanted_live(
    ledger: Ledger, base: Base | None, settings: ServingSettings, group_id: str
) -> ModelGroup:
    """What a LIVE update to this group brings, on the base that is served.

    Raises what `Ledger.wanted` does, and ConfigInvalid.
    """
    if base is not None:
        base = replace(base, key=base_key(base.model_id, None, settings))
    return ledger.wanted(group_id, base)


class Bringing:
    """One update here, and its journal: its commit is `ready`, and waits for `go`."""

    def __init__(
        self,
        group_id: str,
        generation: int,
        ready: Callable[[], None],
        switched: Callable[[], None],
        inner: Journal | None = None,
    ) -> None:
        """`switched` is called in the same step in which requests get the new group."""
        self.group_id, self._generation = group_id, generation
        self._ready, self._on_switch, self._inner = ready, switched, inner
        self._waits = False
        self._goes: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.serving: Serving | None = None
        self.switched = False
        self.report: SwapReport | None = None

    async def run(self, slot: Slot, ledger: Ledger, judge: Judge | None) -> None:
        """Bring the group into what the slot serves. Raises what `Live.update` does."""
        active = slot.active
        if active is None or active.serving.dead:
            raise NotReady(slot.reason)
        self.serving, live = active.serving, active.serving.live
        group = await asyncio.to_thread(_read, ledger, active, self.group_id)
        design = Design.of(group.metadata)
        design.check_cards(active.serving.cards)
        # A start has loaded it, less what engines died with: that is not loaded once more.
        if self._goes.done() and live.renumber(group.base, group.members, design, self._generation):
            self._switch()
        else:
            self.report = await live.update(
                group.base, group.members, self, design, judge, self._generation
            )
        slot.rename(active, group.name)

    def go(self) -> None:
        """Have it switch, when it is ready."""
        self._decide(True)

    def drop(self) -> None:
        """Have it fail, if it was not to switch."""
        if self._decide(False) and not self._waits and self.task is not None:
            self.task.cancel()

    @property
    def dropped(self) -> bool:
        return self._goes.done() and not self._goes.result()

    def _decide(self, goes: bool) -> bool:
        if self._goes.done():
            return False
        self._goes.set_result(goes)
        return True

    async def over(self) -> None:
        """Wait until it has ended: after the switch, when no request uses the group before."""
        if self.task is not None:
            await asyncio.wait({self.task})

    def _switch(self) -> None:
        if not self.switched:
            self.switched = True
            self._on_switch()

    # -- the journal ------------------------------------------------------------------------

    def step(self, step: Phase, done: float, detail: str) -> None:
        if self._inner is not None:
            self._inner.step(step, done, detail)
        if step is Phase.SWITCH:
            self._switch()

    def refused(self, adapter: Digest, error: StackedError) -> None:
        if self._inner is not None:
            self._inner.refused(adapter, error)

    async def commit(self, generation: int) -> None:
        self._waits = True
        self._ready()
        if not await self._goes:
            raise UpdateFailed("the update of the fleet was given up")


def _read(ledger: Ledger, active: Active, group_id: str) -> ModelGroup:
    record = ledger.registry.deployments.get(active.deployment_id)
    settings = settings_of(record.configuration, ledger.deployable(group_id).kind)
    return wanted_live(ledger, active.serving.live.routing.base, settings, group_id)
