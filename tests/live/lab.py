"""LIVE updates in this process: a real engine and store, and places to make each of them fail.

Everything is what a server has, less HTTP and records. It must not assert: tests say what an
outcome must be.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from stacked.config import Design
from stacked.core import Adapter, Base, Digest, Member, ModelGroup, ModelId, model_id_of
from stacked.engine.adaptable import Asking
from stacked.engine.checked import CheckedEngine
from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded
from stacked.engine.machine import look
from stacked.engine.plan import make_plan
from stacked.engine.support import require_build
from stacked.errors import StackedError
from stacked.groups.routing import NO_DESIGN, Routing
from stacked.live import Live, SwapReport
from stacked.steps import Phase, sentence
from stacked.store import AdapterStore, BaseModules
from stacked.store.verified import Verified
from tests import tiny
from tests.live.faults import FaultyClient

T = TypeVar("T")

PROMPT = list(range(300, 324))
TOKENS = 8
SAMPLING = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 0}
HOST = 24
SLOTS = 3
RANK = 64

Answer = tuple[tuple[int, ...], tuple[float, ...]]
"""Greedy token ids, and the logprob of each."""


Members = Mapping[str, Adapter] | list[tuple[str | None, Adapter]]


@dataclass
class Outcome:
    """How an update went, as its journal was told; a hook is called where its phase begins."""

    hooks: dict[Phase, Callable[[], None]]
    refusal: StackedError | None = None
    """What the commit fails with."""
    report: SwapReport | None = None
    error: StackedError | None = None
    blamed: dict[Digest, StackedError] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def step(self, step: Phase, done: float, detail: str) -> None:
        self.log.append(sentence(step, detail))
        hook = self.hooks.pop(step, None)
        if hook is not None:
            hook()

    def refused(self, adapter: Digest, error: StackedError) -> None:
        self.blamed[adapter] = error

    async def commit(self, generation: int) -> None:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.committed.append(generation)


class Lab:
    """One engine with a live group. Make with `start`; every call of it runs on its own loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = Base(ModelId("ocid1.test.base"), "base", str(tiny.build_base(root / "base")))
        self.modules = BaseModules.read(Path(self.base.path))
        self.store = AdapterStore(root / "store")
        self.runner = asyncio.Runner()
        self.hooks: dict[Phase, Callable[[], None]] = {}
        self._numbers = itertools.count(1)
        self._pattern = tiny.build_adapter(root / "pattern", self.base.path, 1, rank=8)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 300))

    def start(self, served: Mapping[str, Adapter]) -> None:
        self.runner.run(self._start(served))

    async def _start(self, served: Mapping[str, Adapter]) -> None:
        members = tuple(
            Member(model_id_of(adapter.digest), adapter, key) for key, adapter in served.items()
        )
        plan = make_plan(
            base=Path(self.base.path),
            shapes=self.modules.modules,
            served_names=("base",),
            adapters=[member.content for member in members],
            options={
                "max_loras": SLOTS,
                "max_cpu_loras": HOST,
                "max_lora_rank": RANK,
                "max_model_len": 256,
                "enable_prefix_caching": False,
                "kv_cache_memory_bytes": 256 * 1024**2,
            },
            machine=look(),
            build=require_build(),
        )
        self.engine = await Engine.start(plan)
        await self.engine.warm()
        self.client = FaultyClient(self.engine.client)
        self.engine.calls.client = self.client
        handles = {m.content.digest: await self.engine.load(m.content) for m in members}
        routing = Routing.of(self.base, members, handles)
        asking = Asking(Path(self.base.path), plan.options, self.root / "engine")
        asking.learn(await self.engine.adaptable())
        verified = Verified(self.root / "engine" / "verified")
        self.live = Live(CheckedEngine(self.engine, asking, verified), routing, drain_seconds=5.0)

    def close(self) -> None:
        self.client.release()
        self.runner.run(self.engine.close())
        self.runner.close()

    # -- adapters ---------------------------------------------------------------------------

    def source(self, pattern: Path | None = None) -> Path:
        """The files of a new adapter, unlike every other."""
        from safetensors.numpy import load_file, save_file

        number = next(self._numbers)
        path = self.root / f"source-{number}"
        shutil.copytree(pattern or self._pattern, path)
        given = load_file(path / "adapter_model.safetensors")
        # Another adapter, not a little louder one: each number orders the pattern's columns anew.
        made = {name: _mixed(name, tensor, number) for name, tensor in given.items()}
        save_file(made, path / "adapter_model.safetensors", {"format": "pt"})
        return path

    def add(self, source: Path | None = None, max_rank: int | None = None) -> Adapter:
        """An adapter that passed the checks and is in the store."""
        return self.store.add(str(source or self.source()), base=self.modules, max_rank=max_rank)

    # -- updates ----------------------------------------------------------------------------

    def update(
        self,
        members: Members,
        refusal: StackedError | None = None,
        design: Design = NO_DESIGN,
    ) -> Outcome:
        """Make these the group, LIVE; a key may be None. With a refusal the commit fails."""
        pairs = list(members.items()) if isinstance(members, Mapping) else members
        made = tuple(Member(model_id_of(adapter.digest), adapter, key) for key, adapter in pairs)
        wanted = ModelGroup("next", self.base, made)  # a group that cannot be is refused here
        return self.run(self._updated(wanted, design, Outcome(self.hooks, refusal)))

    async def _updated(self, wanted: ModelGroup, design: Design, outcome: Outcome) -> Outcome:
        try:
            outcome.report = await self.live.update(self.base, wanted.members, outcome, design)
        except StackedError as error:
            outcome.error = error
        return outcome

    # -- what is served ---------------------------------------------------------------------

    async def answer(self, name: str | None, unit: str | None = None) -> Answer:
        """What a request that names this key or model id gets, through its lease."""
        admission = self.live.admit({"model": name} if name else {}, unit=lambda kind: unit)
        with admission.lease:
            return await self._asked(admission.route.handle)

    async def alone(self, adapter: Adapter) -> Answer:
        """What an adapter answers when it was loaded for this question only."""
        loaded = await self.engine.load(adapter)
        try:
            return await self._asked(loaded)
        finally:
            await self.engine.remove(loaded)

    async def _asked(self, loaded: Loaded | None) -> Answer:
        outputs = await self.engine.generate(
            [PROMPT], loaded, request_id=f"lab-{next(self._numbers)}", sampling=SAMPLING
        )
        return _answer(outputs[0])

    def served(self) -> dict[str, Digest]:
        return {m.label: m.content.digest for m in self.live.routing.members}

    def handles(self) -> set[int]:
        """The numbers of the adapters that the live group has, and nobody else should."""
        return {handle.number for handle in self.live.routing.handles.values()}


def _mixed(name: str, tensor: Any, number: int) -> Any:
    import numpy as np

    if "lora_A" not in name:
        return tensor
    order = np.random.default_rng(number).permutation(tensor.shape[1])
    return np.ascontiguousarray(tensor[:, order])


def _answer(output: Any) -> Answer:
    made = output.outputs[0]
    rows = cast("list[Mapping[int, Any]]", made.logprobs)
    ids = tuple(made.token_ids)
    return ids, tuple(row[token].logprob for row, token in zip(rows, ids, strict=True))
