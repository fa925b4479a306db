"""One engine with its live group, from start to close: what a deployment is while it is active.

It owns the order of a start (plan, engine, adapters, vLLM's app). It must not know records, HTTP or
where the group came from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from stacked import metrics
from stacked.core import Base, Digest, ModelGroup, Progress
from stacked.engine.engine import Engine, Loaded
from stacked.engine.machine import look
from stacked.engine.openai import Served, build_openai_app
from stacked.engine.plan import EnginePlan, make_plan
from stacked.engine.support import Build
from stacked.errors import EngineDead
from stacked.groups.routing import Routing
from stacked.live import Admission, Live
from stacked.store import BaseModules


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
        modules: BaseModules,
        options: Mapping[str, Any],
        commit: Callable[[], Awaitable[int]],
        *,
        build: Build,
        drain_seconds: float,
        progress: Progress,
    ) -> Serving:
        """Plan, start the engine, load the group; 20 to 60 s.

        `commit` is called when all of it is loaded, and returns its generation. Raises what that
        raises, GroupImpossible, EngineOptionInvalid, EngineStartFailed, EngineLoadFailed;
        what was started is stopped then.
        """
        base = group.base
        plan = make_plan(
            base=Path(base.path),
            shapes=modules.modules,
            served_names=(base.key, base.model_id),
            adapters=list(group.adapters().values()),
            options=options,
            machine=look(),
            build=build,
        )
        progress.note(plan.text())
        engine = await Engine.start(plan, progress=progress)
        try:
            handles = await _load_all(engine, group, progress)
            routing = Routing.of(base, group.members, handles, await commit())
            serving = cls(plan, engine, Live(engine, routing, drain_seconds=drain_seconds))
            await serving._open_app()
        except BaseException:
            await engine.close()
            raise
        return serving

    async def _open_app(self) -> None:
        app = await build_openai_app(self.engine, self._rows)
        # vLLM's app has a lifespan of its own, which no server runs as it is not the outermost.
        await self._open.enter_async_context(app.router.lifespan_context(app))
        self.openai_app = app
        self.count()

    @property
    def base(self) -> Base:
        return self.live.routing.base

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

    async def close(self) -> None:
        """Stop the engine and whatever still runs on it. Closing twice is allowed."""
        self.live.close()
        try:
            await self._open.aclose()
        finally:
            await self.engine.close()


async def _load_all(engine: Engine, group: ModelGroup, tell: Progress) -> dict[Digest, Loaded]:
    """Load every adapter; told at most once a second, as a group may have 500."""
    handles: dict[Digest, Loaded] = {}
    adapters = group.adapters()
    told = 0.0
    for at, (digest, adapter) in enumerate(adapters.items(), start=1):
        now = time.monotonic()
        if at in (1, len(adapters)) or now - told >= 1.0:
            told = now
            tell.step(f"Loading adapters into the engine {at}/{len(adapters)}")
        handles[digest] = await engine.load(adapter)
    return handles
