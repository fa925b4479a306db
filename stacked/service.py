"""The whole system as one object: store, engine, routing and leases, from start to close.

Whoever holds it can start it, admit a request, load and remove an adapter, and ask how it is. It
must not know FastAPI, wire formats or argv.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stacked import metrics
from stacked.bases import resolve
from stacked.config import Config, MemberConfig
from stacked.core import (
    Adapter,
    Base,
    Digest,
    Member,
    ModelGroup,
    ModelId,
    Progress,
    Silent,
    model_id_of,
)
from stacked.engine.engine import Engine, Loaded
from stacked.engine.machine import look
from stacked.engine.openai import Served, build_openai_app
from stacked.engine.options import check_names
from stacked.engine.plan import EnginePlan, make_plan
from stacked.engine.support import require_build
from stacked.errors import (
    EngineDead,
    NotReady,
    RankRefused,
    SourceRefused,
    StackedError,
    UpdateFailed,
    UpdateInProgress,
)
from stacked.groups.routing import Route, Routing
from stacked.ledger import Ledger, UpdateJournal, group_id_of, model_record
from stacked.live import Admission, Live
from stacked.registry import (
    GROUP,
    DeployedMember,
    GroupMember,
    MemberState,
    Model,
    Query,
    Registry,
    WorkRequest,
    new_id,
)
from stacked.registry import ModelGroup as GroupRecord
from stacked.store import AdapterStore, BaseModules, is_remote

logger = logging.getLogger("stacked.service")


class State(enum.Enum):
    STARTING = "starting"  # the engine is not there yet; every request is refused as NotReady
    SERVING = "serving"  # the group answers
    FAILED = "failed"  # it did not start, or the engine died; `reason` says why
    STOPPING = "stopping"  # requests in flight may finish; new ones are refused


class Service:
    """One served group. `await start()`, use, `await close()`; not reusable.

    With `durable`, what is served is registered, survives this process, and can be updated LIVE.
    """

    def __init__(self, config: Config, data_dir: Path, *, durable: bool = False) -> None:
        self.config = config
        self.data_dir = data_dir
        self.state = State.STARTING
        self.reason = "not started"
        self.openai_app: Any = None
        self.plan: EnginePlan | None = None
        self._store = AdapterStore(data_dir / "store")
        self._modules: BaseModules | None = None
        self._engine: Engine | None = None
        self._live: Live | None = None
        self._durable = durable
        self._ledger: Ledger | None = None
        self._beginning = asyncio.Lock()
        self._update: asyncio.Task[None] | None = None
        self._update_id: str | None = None

    # -- start and stop ---------------------------------------------------------------------

    async def start(self, progress: Progress | None = None) -> None:
        """Check the group, plan, start the engine, load the adapters, serve.

        What can be refused without the engine is refused before it is started. Raises the
        StackedError that says why; the state is then FAILED and what was started is stopped.
        """
        tell = _Reasons(self, progress or Silent())
        try:
            build = require_build()
            check_names(self.config.engine)
            base_dir = await asyncio.to_thread(resolve, self.config.base.model, self.data_dir)
            self._modules = await asyncio.to_thread(BaseModules.read, base_dir)
            base = self._base(base_dir)
            declared, group = await self._what_to_serve(base, tell)
            self.plan = make_plan(
                base=base_dir,
                shapes=self._modules.modules,
                served_names=(base.key, base.model_id),
                adapters=list(group.adapters().values()),
                options=self.config.engine,
                machine=look(),
                build=build,
            )
            tell.note(self.plan.text())
            self._engine = await Engine.start(self.plan, progress=tell)
            handles = await self._load_all(group, tell)
            generation = await self._register(declared, group, tell)
            self._live = Live(
                self._engine,
                Routing.of(base, group.members, handles, generation),
                drain_seconds=self.config.server.drain_seconds,
            )
            self.openai_app = await build_openai_app(self._engine, self._rows)
        except BaseException as error:
            await self._fail(error)
            raise
        self.state = State.SERVING
        self._count()

    def _count(self) -> None:
        routing = self.routing
        metrics.serving(routing.generation, len(routing.handles))

    def stopping(self) -> None:
        """Refuse new requests from now on; those that hold a lease may finish."""
        if self.state is State.SERVING:
            self.state, self.reason = State.STOPPING, "the server is stopping"

    async def close(self) -> None:
        """Stop the engine, and whatever still runs on it. Closing twice is allowed."""
        self.stopping()
        if self._update is not None:
            # A start that follows serves what was committed, so that this may end anywhere.
            self._update.cancel()
            await asyncio.gather(self._update, return_exceptions=True)
        if self._live is not None:
            self._live.close()
        await self._release()

    async def _release(self) -> None:
        if self._engine is not None:
            await self._engine.close()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)

    def notice_death(self) -> bool:
        """Whether the engine has died; the service is FAILED from then on."""
        if self.state is State.SERVING and self.engine.dead:
            self.state, self.reason = State.FAILED, "the engine has died"
        return self.state is State.FAILED

    async def _fail(self, error: BaseException) -> None:
        self.state, self.reason = State.FAILED, str(error) or type(error).__name__
        await self._release()

    def _base(self, directory: Path) -> Base:
        given = self.config.base
        digest = _base_digest(directory)
        return Base(
            model_id=ModelId(given.id) if given.id else model_id_of(digest),
            key=given.key,
            path=str(directory),
            digest=digest,
        )

    async def _what_to_serve(
        self, base: Base, tell: _Reasons
    ) -> tuple[ModelGroup | None, ModelGroup]:
        """The group that the config declares, and the one to serve.

        They differ where the declared group was updated LIVE since: a restart serves what was
        committed last, until the config declares something else. Where the config's adapters are
        gone (None), the committed group is in the store all the same.
        """
        if not self._durable:
            group = await self._check_members(base, tell)
            return group, group
        name = self.config.group.name
        self._ledger = await asyncio.to_thread(Ledger, self.data_dir, name, self._store)
        declared, problem = None, None
        try:
            declared = await self._check_members(base, tell)
        except StackedError as error:
            problem = error
        declared_id = group_id_of(declared) if declared else None
        held = self._ledger.committed(base, declared_id, self._written())
        if held is not None and (declared is None or self._ledger.is_other(declared)):
            tell.note(f"group       {held.name}, as it was updated LIVE last ({len(held.members)})")
            return declared, held
        if declared is None:
            assert problem is not None, "a group that is not declared has a problem"
            raise problem
        return declared, declared

    def _written(self) -> str:
        """What the config says of base and group, to tell whether it was edited."""
        text = self.config.model_dump_json(include={"base", "group"})
        return hashlib.sha256(text.encode()).hexdigest()

    async def _load_all(self, group: ModelGroup, tell: _Reasons) -> dict[Digest, Loaded]:
        handles = {}
        adapters = group.adapters()
        for at, (digest, adapter) in enumerate(adapters.items(), start=1):
            tell.count("Loading adapters into the engine", at, len(adapters))
            handles[digest] = await self.engine.load(adapter)
        return handles

    async def _register(
        self, declared: ModelGroup | None, served: ModelGroup, tell: _Reasons
    ) -> int:
        """Write down what is served, and return its generation."""
        if self._ledger is None:
            return 1
        configuration = {
            "written": self._written(),
            "declared": group_id_of(declared) if declared else None,
            "engine": dict(self.config.engine),
        }
        deployment = await asyncio.to_thread(self._ledger.begin, declared, configuration, served)
        tell.note(f"deployment  {deployment.id}\ngroup       {deployment.group_id}")
        return deployment.generation

    async def _check_members(self, base: Base, tell: _Reasons) -> ModelGroup:
        listed = self.config.group.members
        members: list[Member] = []
        for at, entry in enumerate(listed, start=1):
            tell.count("Checking adapters", at, len(listed))
            try:
                adapter = await asyncio.to_thread(self._add, entry.source, None)
            except StackedError as error:
                # The same class, so that its code and status stay; the sentence gains the place.
                name = entry.key or entry.id or entry.source
                raise type(error)(f"group.members[{at - 1}] ({name}): {error}") from error
            members.append(_member(entry, adapter))
        group = self.config.group
        return ModelGroup(group.name, base, tuple(members), group.metadata)

    def _add(self, source: str, roots: Sequence[Path] | None) -> Adapter:
        if self._modules is None:
            raise NotReady("the base has not been read yet")
        limit = self.plan.max_rank if self.plan else None
        return self._store.add(source, base=self._modules, max_rank=limit, allowed_roots=roots)

    # -- requests ---------------------------------------------------------------------------

    def admit(self, names: Mapping[str, str], end: Callable[[], None] | None = None) -> Admission:
        """Resolve the names a request gave (place -> key or model id) and lease what they mean.

        No name means the base; `end` is called when the request must end at once. Raises NotReady,
        EngineDead, KeyUnknown, KeyConflict, KeyDraining.
        """
        return self.live.admit(names, end)

    @property
    def live(self) -> Live:
        """What is served. Raises NotReady or EngineDead when nothing is."""
        if self._live is None or self.state is not State.SERVING:
            raise NotReady(f"{self.state.value}: {self.reason}")
        if self.engine.dead:
            raise EngineDead("the engine has died; its log says why. Restart the server")
        return self._live

    @property
    def routing(self) -> Routing[Loaded]:
        """The routing table of now. Raises NotReady or EngineDead when nothing is served."""
        return self.live.routing

    @property
    def engine(self) -> Engine:
        """The running engine. Raises NotReady before it runs."""
        if self._engine is None:
            raise NotReady(f"{self.state.value}: {self.reason}")
        return self._engine

    def _rows(self) -> list[Served]:
        """The base, then the members, as `/v1/models` tells them."""
        routing = self.routing
        base = routing.base
        root = base.path.rpartition("/")[2]
        rows = [Served(base.key, root, None, {"model_id": base.model_id})]
        for member in routing.members:
            adapter = member.adapter
            more = {"model_id": member.model_id, "digest": adapter.digest, "rank": adapter.rank}
            rows.append(Served(member.label, adapter.digest, base.key, more))
        return rows

    # -- changing what is served ------------------------------------------------------------

    async def load(
        self, source: str, *, key: str | None, model_id: ModelId | None
    ) -> Route[Loaded]:
        """Check an adapter, load it, and serve it under `key` and its model id.

        `source` must be under the configured roots, or remote where that is allowed. Asking again
        for what is already there is answered with it. Raises AdapterError, KeyInUse, EngineError.
        """
        roots = self._allowed(source)
        adapter = await asyncio.to_thread(self._add, source, roots)
        member = Member(model_id or model_id_of(adapter.digest), adapter, key)
        route = await self.live.add(member)
        self._count()
        return route

    async def unload(self, name: str) -> bool:
        """Stop serving a key or model id; free its adapter when the last request has ended.

        False when requests still ran after the drain time; see `Live.remove`. Raises KeyUnknown.
        """
        freed = await self.live.remove(name)
        self._count()
        return freed

    # -- groups and LIVE updates ------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        """The records of what is served. Raises NotReady before there are any."""
        if self._ledger is None:
            raise NotReady(f"{self.state.value}: {self.reason}")
        return self._ledger

    @property
    def registry(self) -> Registry:
        return self.ledger.registry

    @property
    def deployment_id(self) -> str:
        """The id of the one deployment. Raises NotReady before it is registered."""
        if self.ledger.deployment is None:
            raise NotReady(f"{self.state.value}: {self.reason}")
        return self.ledger.deployment.id

    async def register_model(
        self, source: str, *, model_id: str | None = None, display_name: str = ""
    ) -> Model:
        """Check the adapter at `source`, keep it in the store, and record it as a model.

        The same rules as for `load`; nothing reaches the engine. Raises AdapterError,
        RecordConflict where the id has other content.
        """
        adapter = await asyncio.to_thread(self._add, source, self._allowed(source))
        name = ModelId(model_id) if model_id else model_id_of(adapter.digest)
        record = model_record(Member(name, adapter), source, display_name)
        return await asyncio.to_thread(self.registry.put_model, record)

    async def create_group(
        self,
        *,
        display_name: str,
        members: Sequence[GroupMember],
        description: str = "",
        custom_metadata: Sequence[Mapping[str, Any]] = (),
        source_group_id: str | None = None,
        create_type: str = "CREATE",
        compartment_id: str = "",
        project_id: str = "",
    ) -> GroupRecord:
        """Record a group, the base among its members. Raises GroupInvalid, RecordAbsent."""
        record = GroupRecord(
            id=new_id(GROUP),
            display_name=display_name,
            base_model_id=self.routing.base.model_id,
            members=tuple(members),
            description=description,
            custom_metadata=tuple(custom_metadata),
            source_group_id=source_group_id,
            create_type=create_type,
            compartment_id=compartment_id,
            project_id=project_id,
        )
        base = self.routing.base
        return await asyncio.to_thread(self.ledger.create_group, record, base)

    async def begin_update(self, group_id: str) -> WorkRequest:
        """Start replacing the served group by this one, LIVE; follow the work request.

        Raises RecordAbsent, AdapterAbsent, UpdateNotLive, and UpdateInProgress while another change
        is under way. What fails later is told by the work request, and the old group serves on.
        """
        live, ledger = self.live, self.ledger
        live.check_free()
        under_way = self._update is not None and not self._update.done()
        if under_way or self._beginning.locked():
            raise UpdateInProgress("another update is under way; follow its work request")
        async with self._beginning:
            wanted = await asyncio.to_thread(ledger.wanted, group_id, live.routing.base)
            work = await asyncio.to_thread(ledger.open_update, group_id)
            journal = ledger.journal(work, group_id, wanted)
            self._update_id = work.id
            self._update = asyncio.create_task(self._run_update(live, wanted, journal))
        return work

    async def _run_update(self, live: Live, wanted: ModelGroup, journal: UpdateJournal) -> None:
        try:
            self._check_ranks(wanted, journal)
            report = await live.update(wanted.base, wanted.members, journal)
        except StackedError as error:
            logger.warning("the update failed, the old group serves on: %s", error)
            metrics.swap_ended("failed", {})
            await journal.failed(error)
            return
        except Exception as error:  # a fault of ours must not leave the record open for ever
            logger.exception("the update failed")
            metrics.swap_ended("failed", {})
            await journal.failed(UpdateFailed(f"an internal error: {type(error).__name__}"))
            return
        metrics.swap_ended("succeeded", {p.value: took for p, took in report.seconds.items()})
        self._count()
        told = f"generation {report.generation}: {len(report.loaded)} loaded, "
        told += f"{len(report.dropped)} dropped, {report.ended} requests ended at the deadline"
        await journal.succeeded(told)

    def _check_ranks(self, wanted: ModelGroup, journal: UpdateJournal) -> None:
        """An engine's rank is set when it starts; what is above it is refused, model by model."""
        most = self.plan.max_rank if self.plan else 0
        above = [member for member in wanted if member.adapter.rank > most]
        for member in above:
            error = RankRefused(
                f"{member.label} has rank {member.adapter.rank}, and this engine takes {most}; "
                "set engine.max_lora_rank and restart"
            )
            journal.refused(member.adapter.digest, error)
        if above:
            raise UpdateFailed(f"{len(above)} models have a rank above {most}, which is not LIVE")

    def member_states(self) -> list[DeployedMember]:
        """How the members of the committed group fared."""
        states: list[DeployedMember] = []
        query = Query()
        while True:
            page = self.registry.list_member_states(self.deployment_id, query)
            states += page.items
            if page.next is None:
                return states
            query = Query(page=page.next)

    def status(self) -> dict[str, Any]:
        """Everything at a glance, ready for JSON."""
        live = self.live
        deployment = self.registry.get_deployment(self.deployment_id)
        group = self.registry.get_group(deployment.group_id) if deployment.group_id else None
        running = self._update is not None and not self._update.done()
        return {
            "deploymentId": deployment.id,
            "groupId": deployment.group_id,
            "groupName": group.display_name if group else None,
            "generation": live.routing.generation,
            "previousGroupId": deployment.previous_group_id,
            "state": deployment.state.value,
            "reason": deployment.reason,
            "update": self._update_id if running else None,
            "draining": sorted(live.routing.draining),
            "models": [
                {
                    "modelId": member.model_id,
                    "inferenceKey": member.key,
                    "digest": member.adapter.digest,
                    "rank": member.adapter.rank,
                    "state": MemberState.SUCCESS.value,
                    "reason": "",
                    "leases": live.leases.held(live.routing.handles[member.adapter.digest]),
                    "resident": True,
                }
                for member in live.routing.members
            ],
        }

    def _allowed(self, source: str) -> list[Path]:
        if is_remote(source) and not self.config.server.remote_adapters:
            raise SourceRefused(
                f"{source[:200]}: no such path here, and adapters from other machines are off; "
                "set server.remote_adapters: true to allow them"
            )
        return [Path(root) for root in self.config.server.adapter_roots]


class _Reasons:
    """Progress that is also the reason `/health` gives while the service is starting."""

    def __init__(self, service: Service, inner: Progress) -> None:
        self._service = service
        self._inner = inner
        self._counted = 0.0

    def step(self, text: str) -> None:
        self._service.reason = text
        self._inner.step(text)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def finish(self, text: str) -> None:
        self._inner.finish(text)

    def count(self, text: str, at: int, of: int) -> None:
        """A step of many like it: told at most once a second, as a group may have 500."""
        now = time.monotonic()
        if at in (1, of) or now - self._counted >= 1.0:
            self._counted = now
            self.step(f"{text} {at}/{of}")


def _member(entry: MemberConfig, adapter: Adapter) -> Member:
    model_id = ModelId(entry.id) if entry.id else model_id_of(adapter.digest)
    return Member(model_id, adapter, entry.key)


def _base_digest(directory: Path) -> Digest:
    """What tells a base from another: its config, and the names and sizes of its weights.

    Hashing the weights themselves would take minutes for a large base.
    """
    hasher = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        hasher.update(f"{file.name}\0{file.stat().st_size}\0".encode())
    return Digest(f"sha256:{hasher.hexdigest()}")
