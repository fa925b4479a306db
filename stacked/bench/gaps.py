"""`stacked bench swap --gaps`: how long tokens wait while adapters are loaded.

Our LIVE update and vLLM's own endpoint load the same files under the same streams.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from stacked.bench.cores import off_engine_core
from stacked.bench.figures import quantile
from stacked.bench.gap_table import gaps_result
from stacked.bench.memory import forget_files
from stacked.bench.report import Result, Telling
from stacked.bench.server import OURS, PEER, serve, sides_of
from stacked.bench.streams import Door, FirstTokens, Streams
from stacked.bench.subject import Subject
from stacked.bench.switch import measure_switch
from stacked.bench.updates import LiveUpdate, Loader, Update, VllmEndpoint
from stacked.client import Client
from stacked.core import MAX_MEMBERS
from stacked.engine.cpu_affinity import hand_over_soon
from stacked.errors import ParameterInvalid

_SETTLE_SECONDS = 2.0
_STREAM_TOKENS = 1600  # at most; restarting a stream makes the others wait
_AROUND_SWITCH = (0.02, 0.05)  # seconds before and after it
_SWITCHES = 20
_LISTEN_SECONDS = 0.2  # a gap that a load began may end after it

Window = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """`repeats` loads are measured for gaps, and as many for first tokens and refused requests."""

    streams: int
    repeats: int
    steady_seconds: float
    peer: bool = True


def gaps_within(arrivals: Sequence[Sequence[float]], window: Window) -> list[float]:
    """Seconds between tokens of one stream, of every gap that lies in the window or crosses it."""
    since, until = window
    return [
        after - before
        for times in arrivals
        for before, after in pairwise(times)
        if after >= since and before <= until
    ]


def run_gaps(subject: Subject, settings: Settings, directory: Path, tell: Telling) -> Result:
    """Load all adapters but the first, again and again, under streams of the first."""
    if len(subject.adapters) < 2:
        raise ParameterInvalid("gaps need at least two adapters: one streams, the rest are loaded")
    if subject.engine.get("load_format") == "dummy":
        raise ParameterInvalid(
            "gaps need a base with weights of its own: vLLM's random ones are so small that no "
            "adapter changes an answer, and a LIVE update refuses adapters that change nothing"
        )
    directory.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()  # a garbage collection here would look like a late token,
    hand_over_soon()  # and so would another thread's time slice
    each: list[dict[str, Any]] = []
    for side, name in sides_of(settings.peer).items():
        tell.begin(f"Starting {name}")
        with _loader(subject, side, directory) as (url, loader):
            for number in range(settings.repeats):
                tell.begin(f"{name}: load {number + 1} of {settings.repeats}")
                row = _measure(subject, settings, url, loader, side == OURS)
                each.append({"side": side, "repeat": number, **row})
    read = read_seconds(subject.adapters[1:])
    summary = subject.summary() | {"options": subject.options()}
    switch = measure_switch(MAX_MEMBERS, _SWITCHES)
    return gaps_result(summary, settings, each, read, switch)


@contextmanager
def _loader(subject: Subject, side: str, directory: Path) -> Iterator[tuple[str, Loader]]:
    """A server with a way to load adapters into it."""
    with serve(side, subject, directory / side, directory / "data", loading=True) as url:
        if side == PEER:
            yield url, VllmEndpoint(url, subject.members)
            return
        with Client(url) as client:
            yield url, LiveUpdate(client, subject.members)


def _measure(
    subject: Subject, settings: Settings, url: str, loader: Loader, has_door: bool
) -> dict[str, Any]:
    """One load under streams alone, then one with other requests too."""
    tokens = min(_STREAM_TOKENS, int(subject.engine.get("max_model_len", 1024)) - 64)
    with (
        Streams(url, loader.streamed, settings.streams, tokens) as streams,
        off_engine_core(_SETTLE_SECONDS),
    ):
        began, loading = _steady_then_load(settings, loader)
        row = gap_figures(streams.arrivals, began, loading)
        loader.unload()
        first, door = FirstTokens(url, loader.streamed), Door(url)
        with first, door if has_door else nullcontext():
            time.sleep(_SETTLE_SECONDS)
            began, loading = _steady_then_load(settings, loader)
        steady = (began, loading.requested)
        under_way = (loading.requested, loading.ended)
        row |= wait_figures("first_token", first.times, steady=steady, loading=under_way)
        if has_door:
            before, after = _AROUND_SWITCH
            around = (loading.switched - before, loading.switched + after)
            row |= wait_figures("door", door.times, steady=steady, at_switch=around)
        loader.unload()
    return row


def _steady_then_load(settings: Settings, loader: Loader) -> tuple[float, Update]:
    began = time.monotonic()
    time.sleep(settings.steady_seconds)  # the baseline: streams with nothing else
    loading = loader.load()
    time.sleep(_LISTEN_SECONDS)  # tokens that the load has held up still arrive
    return began, loading


def gap_figures(
    arrivals: Sequence[Sequence[float]], began: float, loading: Update
) -> dict[str, Any]:
    """The steady window from `began` to the load, and the load; milliseconds.

    Raises ParameterInvalid if no token came in one of them.
    """
    steady = gaps_within(arrivals, (began, loading.requested))
    during = gaps_within(arrivals, (loading.requested, loading.ended))
    if not (steady and during):
        raise ParameterInvalid("no stream was under way; ask for more streams, or more adapters")
    return {
        "gaps_steady": _three(steady),
        "gaps_loading": _three(during),
        "worst_to_steady_p99": max(during) / quantile(steady, 0.99),
        "p99_to_steady_p99": quantile(during, 0.99) / quantile(steady, 0.99),
        "seconds_to_usable": loading.switched - loading.requested,
        "seconds_to_end": loading.ended - loading.requested,
        "phases_seconds": {name: round(value, 4) for name, value in loading.phases.items()},
    }


def wait_figures(
    name: str, times: Sequence[tuple[float, float]], **windows: Window
) -> dict[str, Any]:
    """Milliseconds of the requests (sent, seconds) that were under way in each window."""
    return {
        f"{name}_{window}": _three(
            [waited for sent, waited in times if sent + waited >= since and sent <= until]
        )
        for window, (since, until) in windows.items()
    }


def _three(seconds: Sequence[float]) -> dict[str, float | int]:
    """Milliseconds: median, 99th percentile and worst, of how many."""
    return {
        "count": len(seconds),
        "median": round(median(seconds or [0.0]) * 1000, 3),
        "p99": round(quantile(seconds or [0.0], 0.99) * 1000, 3),
        "worst": round(max(seconds, default=0.0) * 1000, 3),
    }


def read_seconds(adapters: Sequence[Path]) -> dict[str, float | int]:
    """How long reading the adapters' files takes: evicted from the page cache, and once more."""
    files = forget_files(adapters)
    cold, warm = (_timed(lambda: [file.read_bytes() for file in files]) for _ in range(2))
    size = sum(file.stat().st_size for file in files)
    return {"bytes": size, "cold_seconds": round(cold, 4), "warm_seconds": round(warm, 4)}


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
