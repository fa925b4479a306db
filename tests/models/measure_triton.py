"""The same models in a Triton server and in our own processes, measured in turn.

STACKED_TRITON=…/site-packages python -m tests.models.measure_triton --count 16 --replaced 8
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from stacked.core import Digest, Member
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.loader import Loader
from stacked.models.engine import ModelHandle, ModelsEngine
from stacked.models.triton import TritonEngine
from tests.models import making, tritons
from tests.models.measure import _BODY, Clients, Notes, made, member
from tests.waiting import until_async

# What measures in turn measures the same minute of a machine that does other work too.
_ROUNDS, _REQUESTS, _AT_ONCE = 4, 400, 8


@asynccontextmanager
async def in_triton(place: Path, threads: int) -> AsyncIterator[tuple[TritonEngine, list[int]]]:
    """An engine, and the process that its models are below."""
    with tritons.running(place, threads=threads) as triton:
        engine = TritonEngine(print, triton.url, "measure", 60)
        await engine.start()
        try:
            yield engine, [triton.process.pid]
        finally:
            await engine.close()


@asynccontextmanager
async def in_workers(place: Path) -> AsyncIterator[tuple[ModelsEngine, list[int]]]:
    async with making.running() as (engine, _):
        yield engine, making.pids_of(engine)


def private_mb(pids: list[int]) -> float:
    """Memory that these processes and what they have started do not share."""
    roots = [psutil.Process(pid) for pid in pids]
    every = [each for root in roots for each in (root, *root.children(recursive=True))]
    return sum(each.memory_full_info().uss for each in every) / 1e6


class Measured:
    """One engine with its group, and its figures."""

    def __init__(self, engine: ModelsEngine, pids: list[int]) -> None:
        self.engine, self.pids = engine, pids
        self.figures: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.rates: list[float] = []

    async def load(self, members: list[Member], answers: dict[Digest, float]) -> None:
        began = time.perf_counter()
        staged: dict[Digest, ModelHandle] = {}
        contents = [each.content for each in members]
        assert not await Loader(self.engine).stage(contents, staged, lambda _: None)
        self.figures["load_s"] = time.perf_counter() - began
        pids = self.pids if isinstance(self.engine, TritonEngine) else making.pids_of(self.engine)
        self.figures["private_mb"] = private_mb(pids)
        self.live = Live(self.engine, Routing.of(None, tuple(members), staged), drain_seconds=60)
        self.answers = answers

    async def round(self) -> None:
        """One client's times, then how much eight get."""
        handles = [*self.live.routing.handles.values()]

        async def requests(count: int, seconds: list[float]) -> None:
            for at in range(count):
                began = time.perf_counter()
                await making.infer(
                    self.engine, handles[at % len(handles)], _BODY, "application/json"
                )
                seconds.append(time.perf_counter() - began)

        await requests(_REQUESTS, self.seconds)
        began = time.perf_counter()
        each = _REQUESTS // _AT_ONCE
        await asyncio.gather(*(requests(each, []) for _ in range(_AT_ONCE)))
        self.rates.append(each * _AT_ONCE / (time.perf_counter() - began))

    async def update(self, members: tuple[Member, ...], clients: int) -> None:
        """A LIVE update under clients."""
        traffic = Clients(self.engine, self.live, self.answers)  # type: ignore[arg-type]
        running = asyncio.create_task(traffic.run(clients))
        await until_async(lambda: traffic.seconds)
        before, began = len(traffic.seconds), time.perf_counter()
        report = await self.live.update(None, members, Notes())
        self.figures["update_s"] = time.perf_counter() - began
        meanwhile = traffic.seconds[before:]
        traffic.stop()
        await running
        self.figures |= {
            "answers_meanwhile": len(meanwhile),
            "longest_meanwhile_s": max(meanwhile),
            "over_half_a_second": sum(each > 0.5 for each in meanwhile),
            "wrong": traffic.wrong,
            "failed": len(traffic.failed) + report.ended,
            "left": len(report.left),
        }

    def all(self) -> dict[str, Any]:
        rates = [round(each) for each in self.rates]
        p50 = statistics.median(self.seconds) * 1e3
        return {**self.figures, "p50_ms_1_client": p50, "requests_per_s_8_clients": rates}


async def measure(
    place: Path, count: int, replaced: int, clients: int, threads: int
) -> dict[str, Any]:
    contents = made(place, "score", range(1, count + 1))
    newer = made(place, "score", range(count + 1, count + replaced + 1))
    answers = {each.digest: factor for factor, each in (contents | newer).items()}
    old = [member(at, each) for at, each in enumerate(contents.values())]
    changed = [member(at, each) for at, each in enumerate(newer.values())]
    async with AsyncExitStack() as stack:
        both = {
            "triton": await stack.enter_async_context(in_triton(place / "triton", threads)),
            "workers": await stack.enter_async_context(in_workers(place)),
        }
        measured = {name: Measured(*engine) for name, engine in both.items()}
        for each in measured.values():
            await each.load(old, answers)
        for _ in range(_ROUNDS):
            for each in measured.values():
                await each.round()
        for each in measured.values():
            await each.update((*changed, *old[replaced:]), clients)
    return {name: each.all() for name, each in measured.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=16)
    options.add_argument("--replaced", type=int, default=8)
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--threads", type=int, default=8, help="of Triton's for HTTP")
    with tempfile.TemporaryDirectory() as place:
        found = asyncio.run(measure(Path(place), **vars(options.parse_args())))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
