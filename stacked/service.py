"""The whole system as one object, for the life of a process: records, stores, and what is served.

It starts, admits requests, changes what is served, and reports its state. It must
not know FastAPI, wire formats or argv.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stacked import metrics
from stacked.catalogue import Catalogue
from stacked.config import Config, ControlConfig, RayConfig
from stacked.deployment.activation import NOTHING, Activation, Active, EngineState, Slot, Starter
from stacked.deployment.changes import Change
from stacked.deployment.deployments import Deployments
from stacked.deployment.fleet import FleetMember
from stacked.deployment.from_file import DeclaredBase, FileDeployment, read_base, serve_alone
from stacked.deployment.gates import Judged
from stacked.deployment.ledger import Ledger
from stacked.deployment.members import states_now, states_of_all
from stacked.deployment.runtime import RuntimeUpdates
from stacked.engine.loaded import Resident
from stacked.engine.options import check_names
from stacked.engine.support import require_build
from stacked.errors import EngineDead, NotAuthorizedOrNotFound, NotReady
from stacked.groups.routing import Routing
from stacked.log_files import LogFiles
from stacked.outcomes import Outcomes
from stacked.registry import DeployedMember, Deployment, Page, Query, Registry
from stacked.retention.collect import Collector, Records
from stacked.retention.rounds import Rounds
from stacked.serving import NO_TENSORS, NO_VLLM, Admission, Scope
from stacked.serving.residency import resident_in, show_residency
from stacked.serving.shadow import Shadow
from stacked.serving.targets import Target
from stacked.serving.vllm import VllmServing
from stacked.steps import Heard, Progress, Silent
from stacked.store import AdapterStore, ModelStore, SharedContents
from stacked.supervision.supervisor import Supervisor
from stacked.usage import Usage

if TYPE_CHECKING:
    from stacked.serving.models import ModelsServing


class State(enum.Enum):
    STARTING = "starting"  # what the file declares is not served yet; requests are NotReady
    SERVING = "serving"  # what is deployed answers; there may be nothing
    FAILED = "failed"  # it did not start, or the engine died; `reason` says why
    STOPPING = "stopping"  # requests in flight may finish; new ones are refused


class Service:
    """Zero or one served group. `await start()`, use, `await close()`; not reusable.

    With `durable`, what is served is registered, survives this process, and can be changed. Without
    a base in the config (`ControlConfig`), it begins with what was served last, or with nothing.
    """

    def __init__(self, config: ControlConfig, data_dir: Path, *, durable: bool = False) -> None:
        self.config = config
        self.data_dir = data_dir
        self.state = State.STARTING
        self.reason = "not started"
        place = config.storage.contents_place
        shared = SharedContents(place) if place else None
        self._store = AdapterStore(data_dir / "store", shared=shared)
        self._models = ModelStore(
            self._store.root,
            code=config.models.code,
            pythons=config.models.pythons,
            shared=shared,
        )
        self._durable = durable
        self._ledger: Ledger | None = None
        self._catalogue: Catalogue | None = None
        self._deployments: Deployments | None = None
        self._slot = Slot()
        self.usage = Usage()
        self.shadow = Shadow(config.experiments.shadow)
        self.outcomes = Outcomes(config.experiments, lambda key: self.routing.arms[key].facts)
        self.log_files: LogFiles | None = None
        """Where this process's lines go, if it tends files."""
        self._rounds: Rounds | None = None
        self._supervisor: Supervisor | None = None
        self.fleet: FleetMember | None = None
        """Where this server is one of several that serve the same."""
        self.ray: Callable[[], RayConfig] | None = None
        """What Ray Serve has started and stops them by, if it does."""
        self.given_up = asyncio.Event()
        """Set when an engine that died is not started again: the state is FAILED."""
        self._needed = contextlib.ExitStack()
        """Holds what is served without records in the store."""

    # -- start and stop ---------------------------------------------------------------------

    async def start(self, progress: Progress | None = None) -> None:
        """Serve what the config declares, or what a process before this one served.

        What can be refused without the engine is refused before the engine starts. Raises the
        StackedError that says why; the state is then FAILED and what was started is stopped.
        """
        tell = Heard(progress or Silent(), self._starting)
        try:
            await self._start(tell)
        except BaseException as error:
            self.state, self.reason = State.FAILED, str(error) or type(error).__name__
            await self._release()
            raise
        self.state = State.SERVING
        if self.fleet is not None:
            self.fleet.begin()
        if self._rounds is not None:
            self._rounds.begin()
        if self._supervisor is not None:
            self._supervisor.begin()

    def _starting(self, text: str) -> None:
        self.reason = text

    async def _start(self, tell: Progress) -> None:
        check_names(self.config.engine)
        config = self.config
        if not isinstance(config, Config) and not config.group.members:
            await self._resume(await self._open(tell), tell)
        elif self._durable or not isinstance(config, Config):
            await self._serve_file(config, tell)
        else:
            alone = serve_alone(config, self.data_dir, self._store, self._needed, tell)
            self._slot.serve(await alone)

    def stopping(self) -> None:
        """Refuse new requests from now on; those that hold a lease may finish."""
        if self.state is State.SERVING:
            self.state, self.reason = State.STOPPING, "the server is stopping"

    async def drain(self) -> None:
        """Let requests finish, within `server.drain_seconds`; what runs longer is ended.

        An engine that dies meanwhile is not started again.
        """
        self.stopping()
        if self.fleet is not None:
            await self.fleet.leave()
        if self._supervisor is not None:
            await self._supervisor.close()
        if self._slot.active is not None:
            await self._slot.active.serving.live.drain()

    async def close(self) -> None:
        """Stop the engine, and whatever still runs on it. Closing twice is allowed."""
        self.stopping()
        await self._release()

    async def _release(self) -> None:
        if self._rounds is not None:
            await self._rounds.close()
        if self._supervisor is not None:
            await self._supervisor.close()
        if self._deployments is not None:
            await self._deployments.close()
        await self.shadow.close()
        await self._slot.close()
        self._needed.close()
        await self.usage.close()
        await self.outcomes.close()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)

    def _give_up(self, reason: str) -> None:
        if self.state is State.SERVING:
            self.state, self.reason = State.FAILED, reason
            self.given_up.set()

    async def _open(self, tell: Progress) -> Deployments:
        """Open the records, and what works on them."""
        config = self.config
        lease = config.fleet.lease_seconds if config.fleet else None
        place = (self.data_dir, config.group.name, self._store, self._models, config.storage)
        ledger = await asyncio.to_thread(Ledger, *place, lease=lease)
        self._ledger = ledger
        self.usage.begin(ledger.registry.usage, config.retention.usage)
        self.outcomes.begin(ledger.registry.outcomes, shared=ledger.fleet is not None)
        catalogue = partial(
            Catalogue,
            ledger.registry,
            self._store,
            ledger.artifacts,
            roots=config.server.adapter_roots,
            remote=config.server.remote_sources,
            engine=config.engine,
            foreign_tokens=config.server.foreign_tokens,
            models=self._models,
        )
        self._catalogue = await asyncio.to_thread(catalogue)
        starter = Starter(ledger, self._catalogue, config)
        activation = Activation(ledger, starter, self._slot, tell)
        gates = config.experiments.gates
        self._deployments = Deployments(ledger, activation, self._slot, config.engine, gates)
        if config.fleet is not None and ledger.fleet is not None:
            self.fleet = FleetMember(self._slot, ledger, ledger.fleet, config.fleet)
            self._deployments.fleet = self.fleet
        records = Records(ledger.path, ledger.registry, self._catalogue.tidy_files)
        collector = await asyncio.to_thread(
            Collector, config.retention, self.data_dir, self._store, [records], lambda: self.in_use
        )
        self._rounds = Rounds(collector, config.retention, self.data_dir)
        self._catalogue.changed = self._rounds.wake
        self._supervisor = Supervisor(
            self._slot, self._deployments, ledger, config.supervision, tell, self._give_up
        )
        return self._deployments

    async def _resume(
        self, deployments: Deployments, tell: Progress, last: Deployment | None = None
    ) -> None:
        """Serve again what was served last; the control plane is available meanwhile."""
        last = last or await asyncio.to_thread(self.ledger.last_active)
        if self.ledger.fleet is not None:
            self._slot.serve(await self._file(None).join(last, tell))
            return
        aside = "another deployment was served when the server ended"
        await asyncio.to_thread(self.ledger.set_aside, last.id if last else None, aside)
        if last is None:
            self._slot.empty(NOTHING)
        else:
            tell.note(f"deployment  {last.id}, which was active last, is starting again")
            await deployments.resume(last)

    async def _serve_file(self, config: ControlConfig, tell: Progress) -> None:
        base = None
        if isinstance(config, Config):
            require_build()
            base = await read_base(config, self.data_dir, self._store.root)
        deployments = await self._open(tell)
        with self._store.pinned():
            found = await self._file(base).serve(tell)
        if isinstance(found, Active):
            self._slot.serve(found)
        else:
            await self._resume(deployments, tell, found)

    def _file(self, base: DeclaredBase | None) -> FileDeployment:
        return FileDeployment(self.config, base, self.ledger, self.catalogue, self._store)

    # -- what is served ---------------------------------------------------------------------

    @property
    def active(self) -> Active:
        """What answers requests. Raises NotReady or EngineDead when nothing does."""
        if self.state is not State.SERVING:
            raise self._not_ready()
        return self._slot.get()

    @property
    def ready(self) -> Active:
        """What answers requests that may be sent here. Raises as `active`."""
        active = self.active
        if self.fleet is not None:
            self.fleet.gate.check_ready()
        return active

    def check_live(self) -> None:
        """Raises EngineDead when this process will not serve any more."""
        if self.state is State.FAILED:
            raise EngineDead(self.reason)

    def _not_ready(self) -> NotReady:
        return NotReady(f"{self.state.value}: {self.reason}")

    async def opened(self, after: int = 0) -> None:
        """Return in the step in which a request may be admitted; see `FleetGate.opened`."""
        await self._slot.arrived()
        if self.fleet is not None:
            await self.fleet.gate.opened(after)

    def admit(
        self, target: Target, scope: Scope, body: bytes, end: Callable[[], None]
    ) -> Admission:
        """See `Serving.admit`, after `opened` in the same step. Raises NotReady and EngineDead."""
        serving = self.active.serving
        admission = serving.admit(target, scope, body, end)
        if self.fleet is not None:
            self.fleet.gate.check(admission.route.generation, admission.lease)
        if serving.live.routing.design.shadow and isinstance(serving, VllmServing):
            return self.shadow.watch(serving, admission, target, scope, body)
        return admission

    @property
    def occupant(self) -> Active | None:
        """What answers requests, or did until its engine died."""
        return self._slot.occupant

    @property
    def change(self) -> Change | None:
        """The change of a deployment that is under way."""
        return self._deployments.running if self._deployments is not None else None

    @property
    def gates(self) -> tuple[Judged, ...]:
        """What gates said at the last LIVE update that had some."""
        return self._deployments.gates.last if self._deployments is not None else ()

    @property
    def deployment_id(self) -> str:
        """Of what is served, comes back or is starting; empty if nothing does. From any thread."""
        occupant, change = self._slot.occupant, self.change
        return occupant.deployment_id if occupant else change.deployment_id if change else ""

    @property
    def routing(self) -> Routing[Any]:
        """The routing table of now. Raises NotReady or EngineDead when nothing is served."""
        return self.active.serving.live.routing

    @property
    def vllm(self) -> VllmServing:
        """What serves LoRA adapters.

        Raises NotReady or EngineDead when nothing is served, NotAuthorizedOrNotFound without vLLM.
        """
        serving = self.active.serving
        if not isinstance(serving, VllmServing):
            raise NotAuthorizedOrNotFound(NO_VLLM)
        return serving

    @property
    def models(self) -> ModelsServing:
        """What serves models without vLLM. Raises as `vllm` does, where that serves."""
        serving = self.active.serving
        if isinstance(serving, VllmServing):
            raise NotAuthorizedOrNotFound(NO_TENSORS)
        return cast("ModelsServing", serving)

    @property
    def app(self) -> Any:
        """See `Serving.app`; also while the server is stopping. Raises NotReady without one."""
        active = self._slot.active
        return (active or self.active).serving.app

    async def look(self) -> None:
        """Have the metrics show what the engine does now, and where each content is."""
        metrics.engine_state(self.engine.state)
        if self.fleet is not None:
            self.fleet.look()
        active, there = self._slot.active, await self.resident()
        if active is not None and there is not None:
            show_residency(active.serving.live.routing, there)

    async def resident(self) -> Resident | None:
        """Where the engine has each content; None if it does not say so soon."""
        active = self._slot.active
        return await resident_in(active.serving) if active is not None else None

    @property
    def engine(self) -> EngineState:
        """What the engine does now, whether or not there is one."""
        if self.state is State.FAILED:
            return EngineState("failed", self.reason)
        if self.state is State.STARTING:
            return EngineState("starting", self.reason)
        return self._slot.engine(changes=self.change is not None)

    @property
    def in_use(self) -> frozenset[str]:
        """Digests of bases and adapters that must stay in their stores, as no record names them.

        From any thread. What a start that is under way adds is pinned in the store instead.
        """
        return self._slot.in_use

    def log_ids(self) -> Mapping[str, str]:
        """The log ids of the deployment that is served or starting, by category. From any thread.

        Raises RegistryUnusable.
        """
        id = self.deployment_id
        if self._ledger is None or not id:
            return {}
        logs = self.registry.deployments.get(id).configuration.get("logs") or {}
        return {category: each.get("logId", "") for category, each in logs.items()}

    # -- changing what is served ------------------------------------------------------------

    @property
    def deployments(self) -> Deployments:
        """What can be deployed and changed. Raises NotReady before there are records."""
        if self._deployments is None or self.state is not State.SERVING:
            raise self._not_ready()
        return self._deployments

    @property
    def runtime(self) -> RuntimeUpdates:
        """Loads and removes models one by one. Raises NotReady or EngineDead."""
        if self._deployments is not None:
            self._deployments.check_single("models are not loaded and removed one by one")
        serving, server = self.active.serving, self.config.server
        return RuntimeUpdates(serving, self._store, self._catalogue, server, self._lifted)

    def _lifted(self) -> None:
        """A quarantined model was loaded again, as a person asked."""
        id, _, serving = self.active
        if self._ledger is not None:
            self._ledger.note(self._ledger.served, id, serving.live.lacking)

    # -- records ----------------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        """The records of what is served. Raises NotReady before there are any."""
        if self._ledger is None:
            raise self._not_ready()
        return self._ledger

    @property
    def registry(self) -> Registry:
        return self.ledger.registry

    @property
    def catalogue(self) -> Catalogue:
        """What can be served. Raises NotReady before there are records."""
        if self._catalogue is None:
            raise self._not_ready()
        return self._catalogue

    @property
    def rounds(self) -> Rounds:
        """Removes what is no longer needed. Raises NotReady before there are records."""
        if self._rounds is None or self.state is not State.SERVING:
            raise self._not_ready()
        return self._rounds

    def member_states(self, id: str, query: Query, **filters: Any) -> Page[DeployedMember]:
        """Members of a deployment's committed group: as recorded, but for what is not served."""
        page = self.registry.deployments.list_members(id, query, **filters)
        if self.fleet is not None:
            return states_of_all(page, self.fleet.differing())
        active = self._slot.active
        here = active is not None and active.deployment_id == id
        return states_now(page, active.serving.live) if active and here else page
