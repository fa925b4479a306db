"""`stacked bench swap --gaps`: how long tokens wait while adapters are loaded.

Our LIVE update and vLLM's own endpoint load the same files under the same streams.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from stacked.bench.cores import off_engine_core
from stacked.bench.figures import quantile
from stacked.bench.gap_table import gaps_result
from stacked.bench.loaders import LiveUpdate, Loader, Loading, VllmEndpoint
from stacked.bench.memory import forget_file
from stacked.bench.online import OURS, PEER, SIDES, tree_of
from stacked.bench.report import Result, Telling
from stacked.bench.server import peer_serving, serving
from stacked.bench.streams import Door, FirstTokens, Streams
from stacked.bench.subject import Subject
from stacked.bench.switch import measure_switch
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

    @property
    def sides(self) -> tuple[str, ...]:
        return (OURS, PEER) if self.peer else (OURS,)


def gaps_within(arrivals: Sequence[Sequence[float]], window: Window) -> list[float]:
    """Seconds between tokens of one stream, of every gap that lies in the window or crosses it."""
    since, until = window
    return [
        after - before
        for times in arrivals
        for before, after in pairwise(times)
        if after >= since and before <= until
    ]


def waits_within(times: Sequence[tuple[float, float]], window: Window) -> list[float]:
    """Seconds of every request (sent, seconds) that was under way in the window."""
    since, until = window
    return [seconds for sent, seconds in times if sent + seconds >= since and sent <= until]


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
    for side in settings.sides:
        tell.begin(f"Starting {SIDES[side]}")
        with _loader(subject, side, directory) as (url, loader):
            for number in range(settings.repeats):
                tell.begin(f"{SIDES[side]}: load {number + 1} of {settings.repeats}")
                row = _measure(subject, settings, url, loader, side == OURS)
                each.append({"side": side, "repeat": number, **row})
    read = read_seconds(subject.adapters[1:])
    summary = subject.summary() | {"options": subject.options()}
    switch = measure_switch(MAX_MEMBERS, _SWITCHES)
    return gaps_result(summary, asdict(settings), each, read, switch)


@contextmanager
def _loader(subject: Subject, side: str, directory: Path) -> Iterator[tuple[str, Loader]]:
    """A server with a way to load adapters into it."""
    if side == PEER:
        first = dict([next(iter(subject.members.items()))])
        place = directory / "peer"
        options = subject.options()
        with peer_serving(subject.base, options, first, place, runtime_loading=True) as url:
            yield url, VllmEndpoint(url, subject.members)
        return
    tree = tree_of(subject)
    roots = sorted({str(path.parent) for path in subject.adapters})
    tree["server"] = {"runtime_updates": True, "adapter_roots": roots}
    with serving(tree, directory / "gaps", directory / "data") as url, Client(url) as client:
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
        row |= first_figures(first.times, began, loading)
        if has_door:
            row |= door_figures(door.times, began, loading)
        loader.unload()
    return row


def _steady_then_load(settings: Settings, loader: Loader) -> tuple[float, Loading]:
    began = time.monotonic()
    time.sleep(settings.steady_seconds)  # the baseline: streams with nothing else
    loading = loader.load()
    time.sleep(_LISTEN_SECONDS)  # tokens that the load has held up still arrive
    return began, loading


def gap_figures(
    arrivals: Sequence[Sequence[float]], began: float, loading: Loading
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
        "seconds_to_usable": loading.usable - loading.requested,
        "seconds_to_end": loading.ended - loading.requested,
        "phases_seconds": {name: round(value, 4) for name, value in loading.phases.items()},
    }


def first_figures(
    times: Sequence[tuple[float, float]], began: float, loading: Loading
) -> dict[str, Any]:
    """Times to first token in the steady window and during the load; milliseconds."""
    return {
        "first_token_steady": _three(waits_within(times, (began, loading.requested))),
        "first_token_loading": _three(waits_within(times, (loading.requested, loading.ended))),
    }


def door_figures(
    times: Sequence[tuple[float, float]], began: float, loading: Loading
) -> dict[str, Any]:
    """The times of requests that need no engine: in the steady window, and around the switch."""
    before, after = _AROUND_SWITCH
    around = (loading.switched_at - before, loading.switched_at + after)
    return {
        "door_steady": _three(waits_within(times, (began, loading.requested))),
        "door_at_switch": _three(waits_within(times, around)),
    }


def _three(seconds: Sequence[float]) -> dict[str, float | int]:
    """Milliseconds: median, 99th percentile and worst, of how many."""
    if not seconds:
        return {"count": 0, "median": 0.0, "p99": 0.0, "worst": 0.0}
    return {
        "count": len(seconds),
        "median": round(median(seconds) * 1000, 3),
        "p99": round(quantile(seconds, 0.99) * 1000, 3),
        "worst": round(max(seconds) * 1000, 3),
    }


def read_seconds(adapters: Sequence[Path]) -> dict[str, float | int]:
    """How long reading the adapters' files takes: evicted from the page cache, and once more."""
    files = [file for path in adapters for file in sorted(path.iterdir()) if file.is_file()]
    for file in files:
        forget_file(file)
    cold, warm = (_timed(lambda: [file.read_bytes() for file in files]) for _ in range(2))
    size = sum(file.stat().st_size for file in files)
    return {"bytes": size, "cold_seconds": round(cold, 4), "warm_seconds": round(warm, 4)}


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
