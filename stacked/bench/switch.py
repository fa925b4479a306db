"""What the switch of a group whose adapters are all staged costs requests at that moment.

The real routing, leases and update run in this process; the engine's part returns at once, so that
only the switch is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

from stacked.bench.figures import Spread, gaps_within
from stacked.core import Adapter, Base, Content, Digest, Member, ModelId, model_id_of
from stacked.engine.loaded import Loaded
from stacked.errors import StackedError
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.loader import Count
from stacked.steps import Phase

_BASE = Base(ModelId("ocid1.datasciencemodel.oc1..base"), "base", "base")
_AFTER_SECONDS = 0.001


class Staged:
    """An engine that has everything already; see `stacked.loader.GroupEngine`."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def handle(self, digest: Digest) -> Loaded:
        number = next(self._numbers)
        request: Any = None  # vLLM's part of a handle, not used here
        return Loaded(digest=digest, name=f"{digest}.{number}", number=number, request=request)

    def check(self, content: Content) -> None: ...

    async def stage(self, content: Content) -> Loaded:
        await asyncio.sleep(0)
        return self.handle(content.digest)

    async def adopt(self, loaded: Loaded) -> None:
        await asyncio.sleep(0)

    async def activate(self, loaded: Loaded) -> bool:
        await asyncio.sleep(0)
        return True

    async def discard(self, *loaded: Loaded) -> None:
        await asyncio.sleep(0)

    async def remove(self, *loaded: Loaded) -> None:
        await asyncio.sleep(0)

    async def verify(
        self, staged: Mapping[Digest, Loaded], done: Count
    ) -> Mapping[Digest, StackedError]:
        await asyncio.sleep(0)
        return {}

    def undisturbed(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class Times:
    """The journal of one update: when it was committed, and when the switch was over."""

    def __init__(self) -> None:
        self.committing = self.committed = self.switched = 0.0

    def step(self, step: Phase, done: float, detail: str) -> None:
        if step is Phase.COMMIT:
            self.committing = time.perf_counter()
        if step is Phase.SWITCH and not self.switched:
            self.switched = time.perf_counter()

    def refused(self, adapter: Digest, error: StackedError) -> None:
        raise error

    async def commit(self, generation: int) -> None:
        await asyncio.sleep(0)
        self.committed = time.perf_counter()


def measure_switch(count: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of the switch of `count` new adapters, and how long a request waits meanwhile.

    `waited`: the longest time for which no request could be admitted, from building the new table
    to just after the switch.
    """
    measured = asyncio.run(_measure(count, repeats))
    switch, waited = ([pair[at] * 1000 for pair in measured] for at in (0, 1))
    return {
        "adapters": count,
        "switch_ms": Spread.of(switch).tree(),
        "waited_ms": Spread.of(waited).tree(),
    }


async def _measure(count: int, repeats: int) -> list[tuple[float, float]]:
    engine = Staged()
    first = _members(count, 0)
    handles = {each.content.digest: engine.handle(each.content.digest) for each in first}
    live = Live(engine, Routing.of(_BASE, first, handles), drain_seconds=10)
    measured = []
    for number in range(1, repeats + 1):
        times, asking = Times(), _Asking(live)
        task = asyncio.create_task(asking.run())
        await live.update(_BASE, _members(count, number), times)
        task.cancel()
        waited = asking.longest(times.committing, times.switched + _AFTER_SECONDS)
        measured.append((times.switched - times.committed, waited))
    return measured


class _Asking:
    """One request after the other, which ends as soon as it is admitted."""

    def __init__(self, live: Live[Loaded]) -> None:
        self._live = live
        self._at: list[float] = []

    async def run(self) -> None:
        while True:
            with self._live.admit({"model-key": "k0"}).lease:
                self._at.append(time.perf_counter())
            await asyncio.sleep(0)

    def longest(self, since: float, until: float) -> float:
        """The longest time between two of them that touches the window."""
        return max(gaps_within([self._at], (since, until)), default=0.0)


def _members(count: int, number: int) -> tuple[Member, ...]:
    """The same keys, other contents."""
    digests = [Digest(f"sha256:{number:032x}{at:032x}") for at in range(count)]
    return tuple(
        Member(model_id_of(digest), Adapter(digest, Path(), 0, 8, ()), f"k{at}")
        for at, digest in enumerate(digests)
    )
