"""The whole system as one object: store, engine, routing and leases, from start to close.

Whoever holds it can start it, admit a request, load and remove an adapter, and ask how it is. It
must not know FastAPI, wire formats or argv.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.bases import resolve
from stacked.config import Config, MemberConfig
from stacked.core import Adapter, Base, Member, ModelGroup, ModelId, Progress, Silent, model_id_of
from stacked.engine.engine import Engine, Loaded
from stacked.engine.machine import look
from stacked.engine.openai import Served, build_openai_app
from stacked.engine.options import check_names
from stacked.engine.plan import EnginePlan, make_plan
from stacked.engine.support import require_build
from stacked.errors import EngineDead, KeyInUse, NotReady, SourceRefused, StackedError
from stacked.groups.leases import Lease, Leases
from stacked.groups.routing import Route, Routing
from stacked.store import AdapterStore, BaseModules, is_remote


class State(enum.Enum):
    STARTING = "starting"  # the engine is not there yet; every request is refused as NotReady
    SERVING = "serving"  # the group answers
    FAILED = "failed"  # it did not start, or the engine died; `reason` says why
    STOPPING = "stopping"  # requests in flight may finish; new ones are refused


@dataclass(frozen=True, slots=True)
class Admission:
    """What one request was given: its route, and the lease to release when it has ended."""

    route: Route[Loaded]
    lease: Lease


class Service:
    """One served group. `await start()`, use, `await close()`; not reusable."""

    def __init__(self, config: Config, data_dir: Path) -> None:
        self.config = config
        self.data_dir = data_dir
        self.state = State.STARTING
        self.reason = "not started"
        self.leases = Leases()
        self.openai_app: Any = None
        self.plan: EnginePlan | None = None
        self._store = AdapterStore(data_dir / "store")
        self._modules: BaseModules | None = None
        self._engine: Engine | None = None
        self._routing: Routing[Loaded] | None = None
        # The one writer of routing: load and remove take turns.
        self._changing = asyncio.Lock()
        # Tasks that nobody awaits; asyncio itself keeps only weak references.
        self._background: set[asyncio.Task[None]] = set()

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
            group = await self._check_members(base, tell)
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
            handles = {}
            adapters = group.adapters()
            for at, (digest, adapter) in enumerate(adapters.items(), start=1):
                tell.count("Loading adapters into the engine", at, len(adapters))
                handles[digest] = await self._engine.load(adapter)
            self._routing = Routing.of(base, group.members, handles)
            self.openai_app = await build_openai_app(self._engine, self._rows)
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
        for task in self._background:
            task.cancel()
        if self._engine is not None:
            await self._engine.close()

    def notice_death(self) -> bool:
        """Whether the engine has died; the service is FAILED from then on."""
        if self.state is State.SERVING and self.engine.dead:
            self.state, self.reason = State.FAILED, "the engine has died"
        return self.state is State.FAILED

    async def _fail(self, error: BaseException) -> None:
        self.state, self.reason = State.FAILED, str(error) or type(error).__name__
        if self._engine is not None:
            await self._engine.close()

    def _base(self, directory: Path) -> Base:
        given = self.config.base
        return Base(
            model_id=ModelId(given.id) if given.id else _base_id(directory),
            key=given.key,
            path=str(directory),
        )

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

    def admit(self, names: Mapping[str, str]) -> Admission:
        """Resolve the names a request gave (place -> key or model id) and lease what they mean.

        No name means the base. Raises NotReady, EngineDead, KeyUnknown, KeyConflict, KeyDraining.
        """
        route = self.routing.resolve_all(names)
        # A route's adapter is what must outlive the request; the base always does.
        return Admission(route, self.leases.take(route.handle))

    @property
    def routing(self) -> Routing[Loaded]:
        """The routing table of now. Raises NotReady or EngineDead when nothing is served."""
        if self._routing is None or self.state is not State.SERVING:
            raise NotReady(f"{self.state.value}: {self.reason}")
        if self.engine.dead:
            raise EngineDead("the engine has died; its log says why. Restart the server")
        return self._routing

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
        async with self._changing:
            routing = self.routing
            present = [m for m in routing.members if member.label in (m.key, m.model_id)]
            if any(m.adapter.digest == adapter.digest for m in present):
                return routing.resolve(member.label)
            # A model id means one content; a second key for the same content is fine.
            for other in routing.members:
                if other.model_id == member.model_id and other.adapter.digest != adapter.digest:
                    raise KeyInUse(f"model {member.model_id} already has other content; remove it")
            handle = routing.handles.get(adapter.digest)
            loaded = handle or await self.engine.load(adapter)
            try:
                self._routing = self.routing.with_member(member, loaded)
            except StackedError:
                if handle is None:
                    await self.engine.remove(loaded)
                raise
            return self._routing.resolve(member.label)

    async def unload(self, name: str, *, wait_seconds: float | None = None) -> bool:
        """Stop serving a key or model id; free its adapter when the last request has ended.

        True when the engine has let go of it, False when requests still ran after `wait_seconds`
        (default: the drain time); it is then removed when the last of them ends. Raises KeyUnknown.
        """
        wait = self.config.server.drain_seconds if wait_seconds is None else wait_seconds
        async with self._changing:
            before = self.routing
            self._routing, gone = before.without(name)
            unused = {m.adapter.digest for m in gone} - self._routing.handles.keys()
            handles = [before.handles[digest] for digest in unused]
            names = frozenset(n for m in gone for n in (m.key, m.model_id) if n is not None)
        freed = True
        for handle in handles:
            if await self.leases.until_free(handle, wait):
                await self._drop(handle, names)
            else:
                freed = False
                self._later(self._drop_when_free(handle, names))
        if not handles:
            self._settle(names)
        return freed

    async def _drop(self, handle: Loaded, names: frozenset[str]) -> None:
        await self.engine.remove(handle)
        self._settle(names)

    async def _drop_when_free(self, handle: Loaded, names: frozenset[str]) -> None:
        while not await self.leases.until_free(handle, 3600):
            pass
        await self._drop(handle, names)

    def _settle(self, names: frozenset[str]) -> None:
        if self._routing is not None:
            self._routing = self._routing.settled(names)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

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


def _base_id(directory: Path) -> ModelId:
    """A base's id when it is given none: from its config and the names and sizes of its weights.

    Hashing the weights themselves would take minutes for a large base.
    """
    hasher = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        hasher.update(f"{file.name}\0{file.stat().st_size}\0".encode())
    return ModelId(f"ocid1.datasciencemodel.oc1..{hasher.hexdigest()}")
