"""Replicas of one fleet in one event loop: real records, store and live groups, engines of doubles.

One step of the loop is a step of all of them, so that the order of all admissions is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

from stacked.config import FleetConfig
from stacked.deployment.activation import Activation, Active, Slot
from stacked.deployment.deployments import Deployments, Revision
from stacked.deployment.fleet import FleetMember
from stacked.deployment.members import states_of_all
from stacked.errors import NotReady, RegistryUnusable
from stacked.fleet.replica import Gate
from stacked.fleet.shared import Advance, Mode, Operation, Stage, View
from stacked.registry import Shared as Schema
from stacked.registry import WorkRequest
from stacked.registry.fleets import FleetStore, Seen
from stacked.serving.vllm import VllmServing
from stacked.steps import Silent
from tests.deployments.machine import Machine, YieldingEngine, engine_of
from tests.waiting import until_async


class Door:
    """A replica's way to the store: nothing comes through while it is `cut`.

    `falls` may close it for good when an operation is about to be sent, or has been carried out.
    """

    def __init__(self, store: FleetStore) -> None:
        self._store = store
        self.cut = False
        self._stage: Stage | None = None
        self.falls: Callable[[str, Operation], bool] = lambda when, operation: False

    def carry_out(self, id: str, operation: Operation) -> View:
        self._pass("before", operation)
        view = self._store.carry_out(id, operation)
        before, self._stage = self._stage, view.fleet and view.fleet.stage
        if not isinstance(operation, Advance) or self._stage is not before:  # no repetition
            self._pass("after", operation)
        return view

    def put_lacking(self, id: str, generation: int, models: Mapping[str, str]) -> None:
        self._check()
        self._store.put_lacking(id, generation, models)

    def seen(self) -> Seen:
        return self._store.seen()

    def happened(self, proposal: str) -> bool:
        self._check()
        return self._store.happened(proposal)

    def _pass(self, when: str, operation: Operation) -> None:
        self.cut = self.cut or self.falls(when, operation)
        self._check()

    def _check(self) -> None:
        if self.cut:
            raise RegistryUnusable("the store is away")

    def close(self) -> None:
        self._store.close()


class Replica:
    """One process: what serves in it, and its part in the fleet."""

    def __init__(self, fleet: Fleet, name: str, slot: Slot) -> None:
        ledger, self._fleet, self.slot = fleet.machine.ledger, fleet, slot
        activation = Activation(ledger, fleet.machine.starts, slot, Silent())
        self.deployments = Deployments(ledger, activation, slot, {"max_loras": 4})
        self.door = Door(FleetStore(fleet.place))
        config = fleet.config.model_copy(update={"replica": name})
        self.member = FleetMember(slot, ledger, self.door, config)
        self.deployments.fleet = self.member
        self.refused = 0

    @property
    def serving(self) -> VllmServing:
        assert self.slot.active is not None, self.slot.reason
        return cast("VllmServing", self.slot.active.serving)

    @property
    def engine(self) -> YieldingEngine:
        return engine_of(self.serving)

    @property
    def open(self) -> bool:
        return self.member.gate.now is Gate.OPEN

    @property
    def generation(self) -> int:
        """What its requests get."""
        return int(self.serving.live.routing.generation)

    async def update(self, group: str) -> WorkRequest:
        return await self.deployments.update(self._fleet.id, Revision(group, live=True))

    async def end(self, work: WorkRequest) -> str:
        await self.deployments.wait()
        return self._fleet.machine.registry.work_requests.get(work.id).status.value

    async def ask(self, after: int = 0) -> int:
        """The generation that a request gets. Raises NotReady."""
        gate, live = self.member.gate, self.serving.live
        await gate.opened(after)
        route, lease = live.admit({})
        with lease:
            gate.check(route.generation, lease)
            self._fleet.admits(route.generation)
            await asyncio.sleep(0)
        return route.generation

    def withhold(self, key: str, why: str) -> None:
        """Quarantine what this key names, as deaths of its engine do."""
        live = self.serving.live
        live.withhold(live.routing.resolve(key).handle, why)

    def states(self) -> dict[str | None, tuple[str, str]]:
        """What it says of each key of the committed group: its state over all replicas, and why."""
        page = self._fleet.machine.registry.deployments.list_members(self._fleet.id)
        rows = states_of_all(page, self.member.differing()).items
        return {row.key: (row.state.value, row.reason) for row in rows}

    async def demand(self) -> None:
        while True:
            try:
                await self.ask()
            except NotReady:
                self.refused += 1
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        await self.deployments.close()
        await asyncio.to_thread(self.door.close)
        await self.slot.close()


class Fleet:
    """Up to a few replicas. Use as `async with`; `admitted` are the generations of all requests."""

    def __init__(self, directory: Path, mode: Mode = Mode.GLOBAL, **more: Any) -> None:
        # What a busy machine delays must not end an update.
        times = {"lease_seconds": 2, "hold_seconds": 20} | more
        self.config = FleetConfig(mode=mode, **times)
        self.machine = Machine(directory)
        self.place: Path | Schema = directory / "fleet.sqlite"
        self.id = ""
        self.replicas: list[Replica] = []
        self.admitted: list[int] = []
        self._open = contextlib.AsyncExitStack()

    def admits(self, generation: int) -> None:
        if self.config.mode is Mode.GLOBAL:
            assert generation >= max(self.admitted, default=0), "a request is admitted backwards"
        self.admitted.append(generation)

    async def start(self, name: str) -> Replica:
        """Another process; the first one founds the fleet."""
        if not self.id:
            self.id = await self.machine.active(1)
            slot = self.machine.slot
        else:
            slot = Slot()
        replica = Replica(self, name, slot)
        if slot.active is None:
            record = self.machine.registry.deployments.get(self.id)
            prepared = await self.machine.starts.prepare(str(record.group_id), record.configuration)

            async def stands() -> int:
                return record.generation

            serving = await self.machine.starts.start(prepared, stands, Silent())
            slot.serve(Active(self.id, "g", serving))
        self.replicas.append(replica)
        self._open.push_async_callback(replica.close)
        replica.member.begin()
        return replica

    async def of(self, *names: str) -> list[Replica]:
        found = [await self.start(name) for name in names]
        await self.ready()
        return found

    async def ready(self, *replicas: Replica) -> None:
        """Wait until these, or all, admit requests."""
        await until_async(lambda: all(each.open for each in replicas or self.replicas))

    @contextlib.asynccontextmanager
    async def under_requests(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each.demand()) for each in self.replicas]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, asyncio.CancelledError), error

    @property
    def status(self) -> str:
        """Of the deployment."""
        return self.machine.state(self.id)

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()
        await self.machine.close()
