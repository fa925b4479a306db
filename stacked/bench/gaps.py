"""How long streams wait between tokens: in a steady time, and while a LIVE update loads adapters.

It must not know how an update is made; it sees tokens arrive.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from stacked.bench.asking import Got, body, stream
from stacked.bench.groups import config_tree
from stacked.bench.server import serving
from stacked.bench.updates import Updater
from stacked.client import Client
from stacked.config import Config, MemberConfig
from stacked.core import Progress
from stacked.errors import ConfigInvalid

_SETTLE_SECONDS = 2.0
_STREAM_TOKENS = 384

Window = tuple[float, float]


class Streams:
    """`count` endless streams of one key in a thread of their own, and when their tokens came."""

    def __init__(self, url: str, key: str, count: int, tokens: int) -> None:
        self.arrivals: list[list[float]] = []
        """Of each stream that was begun: when its events came, by the monotonic clock."""
        self._url, self._key, self._count, self._tokens = url, key, count, tokens
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bench-streams")

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001  raised by the thread that waits for this one
            self._failure = error

    async def _all(self) -> None:
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=300) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(self._count):
                tasks.create_task(self._one(client, number))

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            times: list[float] = []
            self.arrivals.append(times)
            request = body(self._key, f"Story number {number}: once upon a time", self._tokens)
            async for _event in stream(client, request, Got()):
                times.append(time.monotonic())
                if self._stop.is_set():
                    return


def gaps_within(arrivals: Sequence[Sequence[float]], window: Window) -> list[float]:
    """Seconds between tokens of one stream, of every gap that lies in the window or crosses it."""
    since, until = window
    return [
        after - before
        for times in arrivals
        for before, after in pairwise(times)
        if after >= since and before <= until
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(1, ceil(share * len(ordered))) - 1]


def run_gaps(
    config: Config,
    streams: int,
    repeats: int,
    steady_seconds: float,
    directory: Path,
    progress: Progress,
    fraction: Callable[[float], None],
) -> dict[str, Any]:
    """Load all members but the first LIVE, `repeats` times, under streams of the first."""
    members = [(each.key or f"member-{at}", each) for at, each in enumerate(config.group.members)]
    if len(members) < 2:
        raise ConfigInvalid(
            "gaps need two members at least: the first streams, the rest are loaded"
        )
    progress.step("Starting the server")
    with (
        serving(config_tree(config, members), directory / "gaps", directory / "data") as url,
        Client(url) as client,
    ):
        updater = Updater(client, poll_seconds=0.1)
        alone, whole = updater.create("first", members[:1]), updater.create("all", members)
        updater.go(alone)
        progress.step(f"{repeats} updates of {len(members) - 1} adapters under {streams} streams")
        each = []
        tokens = min(_STREAM_TOKENS, int(config.engine.get("max_model_len", 1024)) - 64)
        with Streams(url, members[0][0], streams, tokens) as running:
            for number in range(repeats):
                time.sleep(_SETTLE_SECONDS)
                each.append(_measure(updater, running, whole, steady_seconds))
                updater.go(alone)
                fraction((number + 1) / repeats)
    described = {"base": Path(config.base.model).name, "engine": dict(config.engine)}
    return described | _figures(streams, members, each)


def _measure(updater: Updater, running: Streams, group: str, seconds: float) -> dict[str, Any]:
    """One steady window, then one update; milliseconds."""
    began = time.monotonic()
    time.sleep(seconds)
    steady = gaps_within(running.arrivals, (began, time.monotonic()))
    update = updater.go(group)
    time.sleep(0.2)  # a gap that the update began may end after it
    during = gaps_within(running.arrivals, (update.asked, update.ended))
    p99 = quantile(steady, 0.99)
    return {
        "steady_gaps": len(steady),
        "steady_median_ms": round(median(steady) * 1000, 2),
        "steady_p99_ms": round(p99 * 1000, 2),
        "steady_worst_ms": round(max(steady) * 1000, 2),
        "update_seconds": round(update.ended - update.asked, 3),
        "update_gaps": len(during),
        "update_p99_ms": round(quantile(during, 0.99) * 1000, 2),
        "update_worst_ms": round(max(during) * 1000, 2),
        "worst_to_steady_p99": round(max(during) / p99, 3),
        "phases_seconds": {name: round(value, 4) for name, value in update.phases.items()},
    }


def _figures(
    streams: int, members: Sequence[tuple[str, MemberConfig]], each: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    names = [name for name in each[0] if name != "phases_seconds"]
    return {
        "streams": streams,
        "adapters_loaded": len(members) - 1,
        "repeats": len(each),
        "medians": {name: median(row[name] for row in each) for name in names},
        "worst_ratio_of_all": max(row["worst_to_steady_p99"] for row in each),
        "each": list(each),
    }
