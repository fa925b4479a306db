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
from functools import partial
from pathlib import Path
from typing import Any

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
from stacked.engine.engine import Engine, Loaded, Resident
from stacked.engine.options import check_names
from stacked.engine.support import require_build
from stacked.errors import (
    NotReady,
    SourceRefused,
    StackedError,
)
from stacked.groups.routing import Route, Routing
from stacked.ledger import Ledger, group_id_of, model_record
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
from stacked.serving import Serving
from stacked.store import AdapterStore, BaseModules, is_remote
from stacked.updates import Updates

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
        self._store = AdapterStore(data_dir / "store")
        self._modules: BaseModules | None = None
        self._serving: Serving | None = None
        self._durable = durable
        self._ledger: Ledger | None = None
        self._updates: Updates | None = None

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
            declared, group = await self._what_to_serve(self._base(base_dir), tell)
            self._serving = await Serving.start(
                group,
                self._modules,
                self.config.engine,
                partial(self._register, declared, group, tell),
                build=build,
                drain_seconds=self.config.server.drain_seconds,
                progress=tell,
            )
            if self._ledger is not None:
                self._updates = Updates(self._serving, self._ledger)
        except BaseException as error:
            await self._fail(error)
            raise
        self.state = State.SERVING

    def stopping(self) -> None:
        """Refuse new requests from now on; those that hold a lease may finish."""
        if self.state is State.SERVING:
            self.state, self.reason = State.STOPPING, "the server is stopping"

    async def close(self) -> None:
        """Stop the engine, and whatever still runs on it. Closing twice is allowed."""
        self.stopping()
        await self._release()

    async def _release(self) -> None:
        if self._updates is not None:
            await self._updates.close()
        if self._serving is not None:
            await self._serving.close()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)

    def notice_death(self) -> bool:
        """Whether the engine has died; the service is FAILED from then on."""
        dead = self._serving is not None and self._serving.dead
        if self.state is State.SERVING and dead:
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
        limit = self._serving.plan.max_rank if self._serving else None
        return self._store.add(source, base=self._modules, max_rank=limit, allowed_roots=roots)

    # -- requests ---------------------------------------------------------------------------

    def admit(self, names: Mapping[str, str], end: Callable[[], None] | None = None) -> Admission:
        """Resolve the names a request gave (place -> key or model id) and lease what they mean.

        No name means the base; `end` is called when the request must end at once. Raises NotReady,
        EngineDead, KeyUnknown, KeyConflict, KeyDraining.
        """
        return self.live.admit(names, end)

    @property
    def serving(self) -> Serving:
        """The engine and the group it serves. Raises NotReady or EngineDead when nothing is."""
        if self._serving is None or self.state is not State.SERVING:
            raise NotReady(f"{self.state.value}: {self.reason}")
        self._serving.check_alive()
        return self._serving

    @property
    def live(self) -> Live:
        """What is served. Raises NotReady or EngineDead when nothing is."""
        return self.serving.live

    @property
    def routing(self) -> Routing[Loaded]:
        """The routing table of now. Raises NotReady or EngineDead when nothing is served."""
        return self.live.routing

    @property
    def engine(self) -> Engine:
        """The running engine. Raises NotReady or EngineDead."""
        return self.serving.engine

    @property
    def openai_app(self) -> Any:
        """vLLM's app, also while the server is stopping. Raises NotReady before there is one."""
        if self._serving is None:
            raise NotReady(f"{self.state.value}: {self.reason}")
        return self._serving.openai_app

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
        self.serving.count()
        return route

    async def unload(self, name: str) -> bool:
        """Stop serving a key or model id; free its adapter when the last request has ended.

        False when requests still ran after the drain time; see `Live.remove`. Raises KeyUnknown.
        """
        freed = await self.live.remove(name)
        self.serving.count()
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
        """See `Updates.begin`. Raises NotReady too."""
        self.serving.check_alive()
        if self._updates is None:
            raise NotReady("nothing is recorded here, so that nothing can be updated")
        return await self._updates.begin(group_id)

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

    async def status(self) -> dict[str, Any]:
        """Everything at a glance, ready for JSON. What is resident is what the engine says."""
        live = self.live
        resident = await self.engine.resident()
        deployment = await asyncio.to_thread(self.registry.get_deployment, self.deployment_id)
        group_id = deployment.group_id
        group = await asyncio.to_thread(self.registry.get_group, group_id) if group_id else None
        return {
            "deploymentId": deployment.id,
            "groupId": group_id,
            "groupName": group.display_name if group else None,
            "generation": live.routing.generation,
            "previousGroupId": deployment.previous_group_id,
            "state": deployment.state.value,
            "reason": deployment.reason,
            "update": self._updates.running if self._updates else None,
            "draining": sorted(live.routing.draining),
            "models": [_member_status(member, live, resident) for member in live.routing.members],
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


def _member_status(member: Member, live: Live, resident: Resident) -> dict[str, Any]:
    handle = live.routing.handles[member.adapter.digest]
    return {
        "modelId": member.model_id,
        "inferenceKey": member.key,
        "digest": member.adapter.digest,
        "rank": member.adapter.rank,
        "state": MemberState.SUCCESS.value,
        "reason": "",
        "leases": live.leases.held(handle),
        "resident": handle.number in resident.host,
        "onDevice": handle.number in resident.slots,
    }


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
