"""One engine with its live group, from start to close: what a deployment is while it is active.

It owns the order of a start (engine, adapters, vLLM's app, commit) and of an end. It must not know
records, HTTP or where the group came from.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stacked import metrics
from stacked.core import Adapter, Base, Digest, ModelGroup
from stacked.engine.adaptable import Asking
from stacked.engine.cpu_affinity import Pauses
from stacked.engine.engine import Engine, Loaded
from stacked.engine.machine import look
from stacked.engine.openai import Served, build_openai_app
from stacked.engine.plan import EnginePlan, make_plan
from stacked.engine.support import Build
from stacked.errors import EngineDead, EngineLoadFailed, EngineStartFailed, StackedError
from stacked.groups.routing import Routing
from stacked.live import Admission, Live
from stacked.steps import Counted, Progress, Start
from stacked.store import BaseModules
from stacked.store.content import check_content, modules_of
from stacked.store.verified import Verified

# How long a request that was asked to end at the drain deadline has for its last bytes.
_LAST_WORDS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before a start of such an engine, and remembered after it."""

    asking: Asking
    """Which modules of the base adapters are applied to."""
    verified: Verified
    """Which adapters have answered as they should."""

    @classmethod
    def of(cls, base: Base, plan: EnginePlan, store: Path) -> Known:
        """`store` is the store's directory, below which both are kept."""
        directory = store / "engine"
        asking = Asking(Path(base.path), plan.options, directory)
        facts = [base.digest, str(plan.options.get("dtype")), asking.name]
        scope = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
        return cls(asking, Verified(directory / f"{scope}.verified"))


class Serving:
    """A running engine, its live group and vLLM's app over both. `await close()` ends it."""

    def __init__(self, plan: EnginePlan, engine: Engine, live: Live) -> None:
        self.plan = plan
        self.engine = engine
        self.live = live
        self.openai_app: Any = None
        self._open = contextlib.AsyncExitStack()

    @classmethod
    async def start(
        cls,
        group: ModelGroup,
        plan: EnginePlan,
        known: Known,
        commit: Callable[[], Awaitable[int]],
        *,
        drain_seconds: float,
        progress: Progress,
    ) -> Serving:
        """Start the engine and load the group; 20 to 60 s.

        `commit` is called last, when nothing can fail any more, and returns the generation. Raises
        what that raises, EngineOptionInvalid, EngineStartFailed, EngineLoadFailed, StoreDamaged,
        ModuleUnapplied, CanaryFailed; what was started is stopped then, as it is when this is
        cancelled.
        """
        adapters = list(group.adapters().values())
        engine = await _start_engine_and_check(plan, adapters, progress)
        try:
            nobody = Routing[Loaded].of(group.base, (), {}, 0)
            live = Live(
                engine,
                nobody,
                drain_seconds=drain_seconds,
                check=partial(_check_beside, known.asking),
                verified=known.verified,
            )
            serving = cls(plan, engine, live)
            progress.step(Start.WARM)
            # The one computes in the engine's process, the other imports in this one.
            await asyncio.gather(engine.warm(), serving._open_app())
            known.asking.learn(await engine.adaptable())
            await asyncio.to_thread(_check_all_applied, group, known.asking)
            handles = await _load_all(engine, group, progress)
            progress.step(Start.VERIFY)
            _raise_first(group, await live.verify(reversed([*handles.values()])))
            generation = await commit()
        except EngineDead as error:
            await engine.close()
            # Another start would end like this one.
            raise EngineStartFailed(str(error)) from error
        except BaseException:
            await engine.close()
            raise
        serving.live.begin(Routing.of(group.base, group.members, handles, generation))
        serving.count()
        return serving

    async def _open_app(self) -> None:
        app = await build_openai_app(self.engine, self._rows)
        # vLLM's app has a lifespan of its own, which no server runs as it is not the outermost.
        await self._open.enter_async_context(app.router.lifespan_context(app))
        self.openai_app = app

    @property
    def base(self) -> Base:
        return self.live.routing.base

    @property
    def in_use(self) -> frozenset[str]:
        """Digests of the base, and of the adapters that must stay in the store; see `Live`."""
        return self.live.in_use | {self.base.digest}

    @property
    def dead(self) -> bool:
        """Whether the engine's process has died."""
        return self.engine.dead

    def count(self) -> None:
        """Tell the metrics what is served."""
        routing = self.live.routing
        metrics.serving(routing.generation, len(routing.handles))

    def check_alive(self) -> None:
        """Raises EngineDead."""
        if self.engine.dead:
            raise EngineDead("the engine has died; its log says why. Restart the server")

    def admit(self, names: Mapping[str, str], end: Callable[[], None] | None = None) -> Admission:
        """See `Live.admit`. Raises EngineDead too."""
        self.check_alive()
        return self.live.admit(names, end)

    def _rows(self) -> list[Served]:
        """The base, then the members, as `/v1/models` tells them."""
        base = self.base
        root = base.path.rpartition("/")[2]
        rows = [Served(base.key, root, None, {"model_id": base.model_id})]
        for member in self.live.routing.members:
            adapter = member.adapter
            more = {"model_id": member.model_id, "digest": adapter.digest, "rank": adapter.rank}
            rows.append(Served(member.label, adapter.digest, base.key, more))
        return rows

    async def drain(self, seconds: float) -> int:
        """Wait for the requests that hold a lease; how many outlasted `seconds` and were ended.

        Nothing may be admitted any more.
        """
        leases = self.live.leases
        if await leases.until_all_free(seconds):
            return 0
        ended = leases.end_all()
        await leases.until_all_free(_LAST_WORDS_SECONDS)
        return ended

    async def close(self) -> None:
        """Stop the engine and whatever still runs on it. Closing twice is allowed."""
        self.live.close()
        try:
            await self._open.aclose()
        finally:
            await self.engine.close()


def plan_for(
    group: ModelGroup, modules: BaseModules, options: Mapping[str, Any], build: Build
) -> EnginePlan:
    """What the engine of a group will be started with. Raises GroupImpossible and alike."""
    base = group.base
    return make_plan(
        base=Path(base.path),
        shapes=modules.modules,
        served_names=(base.key, base.model_id),
        adapters=list(group.adapters().values()),
        options=options,
        machine=look(),
        build=build,
    )


async def _start_engine_and_check(
    plan: EnginePlan, adapters: Sequence[Adapter], progress: Progress
) -> Engine:
    """Start an engine, and meanwhile check that the adapters' files are still what they were."""
    starting = asyncio.ensure_future(Engine.start(plan, progress=progress))
    try:
        await asyncio.to_thread(_check_all, adapters)
        return await starting
    except BaseException:
        starting.cancel()
        for ended in await asyncio.gather(starting, return_exceptions=True):
            if isinstance(ended, Engine):
                await ended.close()
        raise


async def _load_all(engine: Engine, group: ModelGroup, tell: Progress) -> Mapping[Digest, Loaded]:
    adapters = list(group.adapters().values())
    try:
        return await engine.load_all(adapters, Counted(tell, Start.LOAD, len(adapters)))
    except EngineLoadFailed as error:
        _raise_first(group, {Digest(error.digest): error} if error.digest else {})
        raise


def _check_beside(asking: Asking, adapter: Adapter) -> None:
    """In a thread beside requests: it takes turns with what serves them."""
    check_content(adapter, Pauses())
    asking.ask().check(modules_of(adapter))


def _check_all_applied(group: ModelGroup, asking: Asking) -> None:
    """Whether the engine applies all of each adapter. Raises ModuleUnapplied, the member named."""
    adaptable = asking.ask()
    passed: set[frozenset[str]] = set()  # members of a group mostly have the same modules
    for digest, adapter in group.adapters().items():
        modules = frozenset(modules_of(adapter))
        if modules not in passed:
            try:
                adaptable.check(modules)
            except StackedError as error:
                _raise_first(group, {digest: error})
        passed.add(modules)


def _raise_first(group: ModelGroup, failed: Mapping[Digest, StackedError]) -> None:
    """Raise the first of these errors with the names of its members before the sentence."""
    for digest, error in failed.items():
        names = ", ".join(m.label for m in group if m.adapter.digest == digest)
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        raise type(error)(f"{names}: {error}{more}") from error


def _check_all(adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        check_content(adapter)
