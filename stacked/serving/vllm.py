"""vLLM's serving: an engine, its live group and vLLM's app over both, from start to close.

It owns the order of a start (engine, app, adapters, commit) and of an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stacked import tracing
from stacked.callers import caller_of
from stacked.config import Design, ServerConfig
from stacked.core import Adapter, Digest, ModelGroup
from stacked.engine.adaptable import Asking
from stacked.engine.checked import CheckedEngine
from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded, Resident
from stacked.engine.machine import look
from stacked.engine.openai import Served, build_openai_app
from stacked.engine.plan import EnginePlan, make_plan
from stacked.engine.processes import Ended
from stacked.engine.support import require_build
from stacked.errors import (
    EngineDead,
    EngineLoadFailed,
    EngineSilent,
    EngineStartFailed,
    NotAuthorizedOrNotFound,
    StackedError,
)
from stacked.experiments.evaluation import Scored
from stacked.groups.routing import Route, Routing
from stacked.live import Live
from stacked.serving import NO_TENSORS, Admission, Commit, Prepared, Scope, raise_first
from stacked.serving.bounds import check_bounds
from stacked.serving.door import Call, Door
from stacked.serving.grammars import check_grammars
from stacked.serving.settings import ServingSettings
from stacked.serving.targets import Target
from stacked.steps import Counted, Progress, Start
from stacked.store import BaseModules
from stacked.store.checks import check_stored, modules_of
from stacked.store.verified import Verified

# Between two looks whether an engine has died while it is started.
_NOTICE_SECONDS = 0.5

_DIED = EngineDead("the engine died while it worked on this request")


@dataclass(frozen=True, slots=True)
class VllmPrepared(Prepared):
    """What is decided before an engine is started, and what is known about such an engine."""

    plan: EnginePlan
    modules: BaseModules
    """What later adapters are checked against."""
    asking: Asking
    """Which modules of the base adapters are applied to."""
    verified: Verified
    """Which adapters have passed their canary."""
    suspects: frozenset[Digest] = frozenset()
    """What starts before this one died with: loaded last, one by one."""

    @classmethod
    def of(
        cls, group: ModelGroup, modules: BaseModules, settings: ServingSettings, store: Path
    ) -> VllmPrepared:
        """Plan the engine of a group; `store` is the store's directory.

        Raises GroupImpossible, and GroupInvalid for a card that the engine does not have.
        """
        assert group.base is not None, "vLLM serves adapters of a base"
        base = Path(group.base.path)
        plan = make_plan(
            base=base,
            shapes=modules.modules,
            served_names=(group.base.key, group.base.model_id),
            adapters=list(_adapters(group).values()),
            options=settings.engine,
            machine=look(),
            build=require_build(),
        )
        Design.of(group.metadata).check_cards(plan.gpus)
        asking = Asking(base, plan.options, store / "engine")
        facts = [group.base.digest, str(plan.options.get("dtype")), asking.name]
        scope = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
        verified = Verified(store / "engine" / f"{scope}.verified")
        return cls(group, settings, plan, replace(modules, engine=asking), asking, verified)


class VllmServing:
    """A running vLLM with its live group; see `stacked.serving.Serving`."""

    def __init__(
        self, prepared: VllmPrepared, engine: Engine, live: Live[Loaded], server: ServerConfig
    ) -> None:
        self.plan = prepared.plan
        self.settings = prepared.settings
        self.modules = prepared.modules
        self.engine = engine
        self.live = live
        self.app: Any = None
        self.in_flight: frozenset[Digest | None] | None = None
        self.suspects: frozenset[Digest] = frozenset()
        self.scored: dict[tuple[str, Digest | None], list[Scored]] = {}
        """By evaluation set and content: what was answered here, and its scores."""
        self._prepared = prepared
        self._server = server
        self._open = contextlib.AsyncExitStack()

    @classmethod
    async def start(
        cls, prepared: VllmPrepared, commit: Commit, server: ServerConfig, tell: Progress
    ) -> VllmServing:
        """Show the plan, start the engine and load the group; 20 to 60 s.

        `commit` is called last, when nothing can fail any more. Raises what that raises,
        EngineOptionInvalid, EngineStartFailed, EngineLoadFailed, StoreDamaged, ModuleUnapplied,
        CanaryFailed; what was started is stopped then, as it is when this is cancelled.
        """
        tell.note(prepared.plan.text())
        group = prepared.loaded
        engine = await _start_engine(prepared, tell)
        if engine.args.otlp_traces_endpoint is not None:
            tracing.begin()
        checked = CheckedEngine(engine, prepared.asking, prepared.verified)
        nobody = Routing[Loaded].of(group.base, (), {}, 0)
        serving = cls(
            prepared, engine, Live(checked, nobody, drain_seconds=server.drain_seconds), server
        )
        serving._open.callback(checked.close)
        watching = asyncio.create_task(_end_calls_of_dead(engine))
        try:
            tell.step(Start.WARM)
            # The one computes in the engine's process, the other imports in this one.
            await asyncio.gather(engine.warm(), serving._open_app())
            prepared.asking.learn(await engine.adaptable())
            await asyncio.to_thread(_check_all_applied, group, prepared.asking)
            handles = await _load_all(engine, prepared, tell)
            tell.step(Start.VERIFY)
            failed = await checked.verify_at_start(reversed([*handles.values()]))
            raise_first(group, failed)
            generation = await commit()
        except (EngineDead, EngineSilent) as error:
            ended = await engine.ended()
            await serving.close()
            raise _start_failed(group, error, engine.suspects, ended) from error
        except BaseException:
            await serving.close()
            raise
        finally:
            watching.cancel()
        prepared.begin(serving.live, handles, generation)
        return serving

    def again(self, quarantined: Mapping[Digest, str]) -> tuple[VllmPrepared, Commit]:
        """What a start in place of this engine needs, for what is served now.

        Models that were loaded or removed one by one stay so, and experiments as they were changed
        last. `quarantined`: adapters that are not
        to be loaded, and why.
        """
        routing = self.live.routing
        now = {member: quarantined.get(member.content.digest) for member in routing.members}
        names = {name for member in now for name in (member.key, member.model_id)}
        gone = {
            member: routing.withheld.get(member.label, "")
            for member in self.live.removed
            if names.isdisjoint({member.key, member.model_id} - {None})
        }
        assert routing.base is not None, "vLLM serves adapters of a base"
        group = replace(
            self._prepared.group,
            base=routing.base,
            members=(*now, *gone),
            metadata=routing.design.as_metadata(),
        )
        new = {member: why for member, why in now.items() if why is not None}

        async def stands() -> int:
            return routing.generation

        again = replace(self._prepared, group=group, withheld=gone | new, suspects=self.suspects)
        return again, stands

    async def _open_app(self) -> None:
        app = await build_openai_app(self.engine, self._rows, self._server.fairness)
        # vLLM's app has a lifespan of its own, which no server runs as it is not the outermost.
        await self._open.enter_async_context(app.router.lifespan_context(app))
        self.use(app)

    def use(self, app: Any) -> None:
        """Have this app answer, which is vLLM's or one of its form."""
        predict = self.settings.predict_endpoint or self._server.predict_endpoint
        unknown = self._server.unknown_parameters
        self.app = app
        most = self._server.limits.max_tokens
        self.door = Door(app, predict=predict, unknown_parameters=unknown, max_tokens=most)

    @property
    def cards(self) -> int:
        """See `Serving.cards`."""
        return self.plan.gpus

    @property
    def dead(self) -> bool:
        """Whether the engine's process has died."""
        return self.engine.dead

    def check_alive(self) -> None:
        """Raises EngineDead."""
        if self.engine.dead:
            raise EngineDead("the engine has died; its log says why")

    def check_ready(self, route: Route[Loaded]) -> None:
        """See `Serving.check_ready`: one engine answers for all."""
        self.check_alive()

    async def step(self) -> None:
        """See `Serving.step`."""
        await self.engine.step()

    def kill(self) -> None:
        """See `Serving.kill`."""
        self.engine.kill()

    async def bury(self) -> Ended:
        """See `Serving.bury`."""
        ended = await self.engine.ended()
        self.died(self.live.leases.end_all)  # those that vLLM left waiting
        await self.close()
        return ended

    def admit(
        self, target: Target, scope: Scope, body: bytes, end: Callable[..., object]
    ) -> Admission:
        """See `Serving.admit`."""
        if target.tensors:
            raise NotAuthorizedOrNotFound(NO_TENSORS)
        call = Call.read(target, scope, body)
        sequences = check_bounds(call.tree, self._server.limits)
        if not self._server.trust_request_grammars:
            check_grammars(call.tree)
        route, lease = self.live.admit(call.names, end, caller_of(scope).keys, call.unit)
        answer = partial(self.door.answer, call, route, died=partial(self.died, end))
        return Admission(route, lease, answer, sequences)

    def died(self, end: Callable[..., object]) -> None:
        """A request meets the death of its engine; at the first one, all others hold leases.

        Of several engines only what had requests on the one that died can be why.
        """
        if self.in_flight is None:
            held = self.engine.under_dead(self.live.leases.things())
            self.in_flight = frozenset(each.digest if each else None for each in held)
        end(_DIED)

    def _rows(self) -> list[Served]:
        """The base, the members, then experiments, as `/v1/models` lists them."""
        routing = self.live.routing
        base = routing.base
        assert base is not None, "vLLM serves adapters of a base"
        root = base.path.rpartition("/")[2]
        rows = [Served(base.key, root, None, {"model_id": base.model_id})]
        for member in routing.members:
            adapter = Adapter.of(member.content)
            more = {"model_id": member.model_id, "digest": adapter.digest, "rank": adapter.rank}
            rows.append(Served(member.label, adapter.digest, base.key, more))
        rows += (Served(key, key, base.key, {}) for key in routing.arms)
        return rows

    async def resident(self) -> Resident:
        """See `Serving.resident`."""
        return await self.engine.resident()

    async def close(self) -> None:
        """Stop the engine and whatever still runs on it. Closing twice is allowed."""
        self.live.close()
        try:
            await self._open.aclose()
        finally:
            await self.engine.close()


async def _start_engine(prepared: VllmPrepared, tell: Progress) -> Engine:
    """Start an engine, and meanwhile check that the adapters' files are what passed the checks."""
    starting = asyncio.ensure_future(Engine.start(prepared.plan, progress=tell))
    try:
        await asyncio.to_thread(_check_all, prepared.loaded)
        return await starting
    except BaseException:
        starting.cancel()
        for ended in await asyncio.gather(starting, return_exceptions=True):
            if isinstance(ended, Engine):
                await ended.close()
        raise


def _adapters(group: ModelGroup) -> Mapping[Digest, Adapter]:
    return {digest: Adapter.of(content) for digest, content in group.contents().items()}


def _check_all(group: ModelGroup) -> None:
    """Raises StoreDamaged and refusals of an adapter, the member named."""
    for digest, adapter in _adapters(group).items():
        try:
            check_stored(adapter)
        except StackedError as error:
            raise_first(group, {digest: error})


async def _load_all(
    engine: Engine, prepared: VllmPrepared, tell: Progress
) -> Mapping[Digest, Loaded]:
    adapters = list(_adapters(prepared.loaded).values())
    count = Counted(tell, Start.LOAD, len(adapters))
    try:
        return await engine.load_all(adapters, count, prepared.suspects)
    except EngineLoadFailed as error:
        named = {Digest(error.digest): error} if error.digest else {}
        raise_first(prepared.loaded, named)
        raise


async def _end_calls_of_dead(engine: Engine) -> None:
    """End the calls of a start whose engine dies: vLLM would leave them waiting."""
    while not engine.dead:  # noqa: ASYNC110  vLLM has no event for it
        await asyncio.sleep(_NOTICE_SECONDS)
    engine.calls.end()


def _start_failed(
    group: ModelGroup, error: StackedError, suspects: frozenset[Digest], ended: Ended
) -> EngineStartFailed:
    """Why a start ended with the engine, and what it was loading: not to blame for its memory."""
    names = [member.label for member in group if member.content.digest in suspects]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    place = f"while it loaded {', '.join(names[:3])}{more}: " if names else ""
    failed = EngineStartFailed(f"{place}{error}")
    failed.suspects = frozenset() if ended.oom else suspects
    return failed


def _check_all_applied(group: ModelGroup, asking: Asking) -> None:
    """Whether the engine applies all of each adapter. Raises ModuleUnapplied, the member named."""
    adaptable = asking.ask()
    passed: set[frozenset[str]] = set()  # members of a group mostly have the same modules
    for digest, adapter in _adapters(group).items():
        modules = frozenset(modules_of(adapter))
        if modules not in passed:
            try:
                adaptable.check(modules)
            except StackedError as error:
                raise_first(group, {digest: error})
        passed.add(modules)
