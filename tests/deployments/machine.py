"""A machine of doubles: real records and routing over engines that start when they are told to.

It must not know how the deployment under test does what it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

from stacked.config import ServerConfig, StorageConfig
from stacked.core import Adapter, Base, Content, Digest, ModelGroup
from stacked.deployment.activation import Activation, Slot
from stacked.deployment.deployments import Deployments
from stacked.deployment.ledger import Ledger
from stacked.engine.loaded import Loaded
from stacked.engine.plan import EnginePlan, Room
from stacked.engine.processes import Ended
from stacked.errors import StackedError
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    Deployment,
    GroupMember,
    GroupRecord,
    Model,
    WorkRequest,
    new_id,
)
from stacked.serving import Commit, Prepared, Serving
from stacked.serving.settings import ServingSettings, base_key, settings_of
from stacked.serving.vllm import VllmPrepared, VllmServing
from stacked.steps import Progress, Silent, Start
from stacked.store import AdapterStore, ModelStore
from tests.groups.test_routing import adapter
from tests.postgres import storage_in
from tests.test_live import FakeEngine

BASE = "ocid1.datasciencemodel.oc1..base"
OVER = ("SUCCEEDED", "FAILED", "CANCELED")


def model_id(number: int) -> str:
    return f"ocid1.datasciencemodel.oc1..m{number}"


class YieldingEngine(FakeEngine):
    """Lets the loop run between its steps, as a real one does: cancellations meet each of them.

    It dies when `dead` is set or it is killed, and makes no step before `steps` is set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = asyncio.Event()
        self.steps.set()

    async def step(self) -> None:
        await self.steps.wait()

    def kill(self) -> None:
        self.dead = True

    async def ended(self) -> Ended:
        return Ended(-9)

    def under_dead(self, held: Collection[Loaded | None]) -> Collection[Loaded | None]:
        return held

    async def stage(self, one: Content) -> Loaded:
        await _turns()
        return await super().stage(one)

    async def adopt(self, loaded: Loaded) -> None:
        await _turns()
        await super().adopt(loaded)

    async def verify(
        self, staged: Mapping[Digest, Loaded], done: Callable[[int], None]
    ) -> Mapping[Digest, StackedError]:
        await _turns()
        return await super().verify(staged, done)


async def _turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def served(prepared: VllmPrepared, commit: Commit, drain_seconds: float) -> VllmServing:
    """What serves a group, over an engine that is a double."""
    engine, group = YieldingEngine(), prepared.loaded
    handles = {digest: await engine.load(one) for digest, one in group.contents().items()}
    out = prepared.quarantined
    routing = Routing.of(group.base, group.members, handles, await commit(), withheld=out)
    live = Live(engine, routing, drain_seconds=drain_seconds)
    live.begin(routing, prepared.group.members)
    return VllmServing(prepared, cast("Any", engine), live, ServerConfig())


def engine_of(serving: Serving) -> YieldingEngine:
    return cast(YieldingEngine, cast(VllmServing, serving).engine)


def prepared_of(group: ModelGroup, settings: ServingSettings) -> VllmPrepared:
    """What is prepared for a double, of one GPU."""
    nothing = cast("Any", None)
    plan = EnginePlan("/base", (), "cuda", {}, max_rank=16, slots=1, host_adapters=1, rows=())
    return VllmPrepared(group, settings, plan, nothing, nothing, nothing)


class FakeStarts:
    """Starts at `gate`, ends at `last`, after its commit.

    `fails` has what the next starts raise, None for those that come up.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.gate: asyncio.Event | None = None
        self.last: asyncio.Event | None = None
        self.fails: list[StackedError | None] = []
        self.enough = True
        self.started: list[VllmServing] = []
        self.configurations: list[Mapping[str, Any]] = []

    async def prepare(self, group_id: str, configuration: Mapping[str, Any]) -> VllmPrepared:
        key = base_key(BASE, None, settings_of(configuration))
        base = Base(cast("Any", BASE), key, "/base", "sha256:b")
        group = self._ledger.wanted(group_id, base)
        self.configurations.append(configuration)
        return prepared_of(group, settings_of(configuration))

    async def start(self, prepared: Prepared, commit: Commit, tell: Progress) -> VllmServing:
        tell.step(Start.IMPORT)
        if self.gate is not None:
            await self.gate.wait()
        tell.step(Start.CREATE)
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error
        serving = await served(prepared, commit, 0.5)
        if self.last is not None:
            await self.last.wait()
        self.started.append(serving)
        return serving

    async def again(
        self, lost: Serving, quarantined: Mapping[Digest, str], tell: Progress
    ) -> VllmServing:
        return await self.start(*cast(VllmServing, lost).again(quarantined), tell)

    def room(self, running: Serving, coming: Prepared) -> Room:
        return Room(self.enough, "beside the old one" if self.enough else "after the old one")


class _Store:
    """Adapters by digest, without a disk."""

    def get(self, digest: Digest) -> Adapter:
        return next(one for one in map(adapter, range(10)) if one.digest == digest)


class Machine:
    """One server's records and deployments. `again()` is what a restart after a kill finds."""

    def __init__(self, directory: Path, storage: StorageConfig | None = None) -> None:
        self.directory = directory
        self.storage = storage or storage_in(directory)
        self._open()
        registry = self.ledger.registry
        registry.models.put(Model(id=BASE, kind="base", digest="sha256:b"))
        for number in range(1, 5):
            registry.models.put(
                Model(id=model_id(number), kind="adapter", digest=adapter(number).digest, rank=8)
            )

    def _open(self) -> None:
        store = cast(AdapterStore, _Store())
        models = ModelStore(self.directory / "store")
        self.ledger = Ledger(self.directory, "tests", store, models, self.storage)
        self.registry = self.ledger.registry
        self.starts = FakeStarts(self.ledger)
        self.slot = Slot()
        activation = Activation(self.ledger, self.starts, self.slot, Silent())
        self.deployments = Deployments(self.ledger, activation, self.slot, {"max_loras": 4})

    async def again(self) -> None:
        """The process is gone, nothing more was written, and another one starts."""
        await self.close()
        self._open()

    async def close(self) -> None:
        await self.deployments.close()
        await self.slot.close()
        self.ledger.close()

    def group(self, *numbers: int, base_key: str | None = "base", **more: Any) -> str:
        """A group whose key `k<n>` is adapter n."""
        entries = (
            GroupMember(BASE, base_key),
            *(GroupMember(model_id(number), f"k{number}") for number in numbers),
        )
        base = BASE if more.get("kind", "STACKED") == "STACKED" else None
        group = GroupRecord(
            id=new_id(GROUP), display_name="g", base_model_id=base, members=entries, **more
        )
        return self.registry.groups.create(group).id

    async def create(self, group_id: str, **configuration: Any) -> tuple[Deployment, WorkRequest]:
        new = Deployment(
            id=new_id(DEPLOYMENT),
            display_name="d",
            configuration={"group": group_id} | configuration,
        )
        return await self.deployments.create(new)

    async def active(self, *numbers: int) -> str:
        """A deployment that serves a group of these; its id."""
        record, work = await self.create(self.group(*numbers))
        assert await self.end(work) == "SUCCEEDED"
        return record.id

    async def end(self, work: WorkRequest) -> str:
        """How a piece of work ended."""
        await self.deployments.wait()
        status = self.registry.work_requests.get(work.id).status.value
        assert status in OVER, status
        return status

    def state(self, id: str) -> str:
        return self.registry.deployments.get(id).state.value

    def reason(self, id: str) -> str:
        return self.registry.deployments.get(id).reason

    def logs(self, work: WorkRequest) -> str:
        return "\n".join(
            line.message for line in self.registry.work_requests.list_logs(work.id).items
        )

    def errors(self, work: WorkRequest) -> list[str]:
        return [error.code for error in self.registry.work_requests.list_errors(work.id).items]

    def closed(self, number: int) -> bool:
        """Whether the engine that was started as the nth has been stopped."""
        return engine_of(self.starts.started[number]).closed

    def serves(self) -> list[str]:
        """The keys that requests reach now."""
        active = self.slot.active
        return [] if active is None else [str(m.key) for m in active.serving.live.routing.members]
