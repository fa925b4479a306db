"""`stacked bench swap --gaps`: how long tokens wait while adapters are loaded.

Our LIVE update and vLLM's own endpoint load the same files under the same streams.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from stacked.bench.clients import Door, FirstTokens, Streams
from stacked.bench.figures import Spread, Window, gaps_within, quantile
from stacked.bench.processes import forget_files, off_engine_core
from stacked.bench.report import Column, Line, Result, Table, Telling
from stacked.bench.server import OURS, PEER, SIDES, serve, sides_of
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


@dataclass(frozen=True, slots=True)
class Settings:
    """`repeats` loads are measured for gaps, and as many for first tokens and refused requests."""

    streams: int
    repeats: int
    steady_seconds: float
    peer: bool = True


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
            time.sleep(_SETTLE_SECONDS)  # until what the unloading disturbed is steady again
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


_PARTS = ("median", "p99", "worst")
_TABLE = Table(
    "swap --gaps",
    ("server", "window"),
    (
        Column("gaps_median", "gap ms", "{0.median:.1f}"),
        Column("gaps_p99", "its p99", "{0.median:.1f}"),
        Column("gaps_worst", "worst", "{0.median:.1f}", chart="Worst gap between tokens (ms)"),
        Column(
            "to_steady",
            "worst to steady p99",
            chart="Worst gap while loading, to the steady p99 (ratio)",
            line=1.0,
        ),
        Column("first_token_median", "first token ms", "{0.median:.1f}"),
        Column("first_token_worst", "worst", "{0.median:.1f}"),
        Column("usable", "seconds until usable"),
    ),
    SIDES,
)


def gaps_result(
    summary: Mapping[str, Any],
    settings: Any,
    each: Sequence[Mapping[str, Any]],
    read: Mapping[str, float | int],
    switch: Mapping[str, Any],
) -> Result:
    """`each` has a row for every load: its side, its figures.

    `read` is the time to read the same bytes, `switch` what the switch of a large group costs.
    """
    lines, rows = [], []
    for side in dict.fromkeys(str(row["side"]) for row in each):
        mine = [row for row in each if row["side"] == side]
        shares = [row["worst_to_steady_p99"] for row in mine]
        for window in ("steady", "loading"):
            figures = {
                f"{name}_{part}": [row[f"{name}_{window}"][part] for row in mine]
                for name in ("gaps", "first_token")
                for part in _PARTS
            }
            if window == "loading":
                figures["to_steady"] = shares
                figures["usable"] = [row["seconds_to_usable"] for row in mine]
            lines.append(Line({"side": side, "window": window}, window, figures))
        share = Spread.of(shares).tree()
        rows.append({"side": side, "medians": _medians(mine), "worst_to_steady_p99": share})
    more = {"read_the_same_bytes": dict(read), "switch_of_a_staged_group": dict(switch)}
    notes = _notes(each, read, switch)
    return _TABLE.result(summary, settings, each, lines, notes, rows, **more)


def _medians(mine: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all loads of a side, of every figure."""
    found: dict[str, Any] = {}
    for name, value in mine[0].items():
        if isinstance(value, Mapping):
            found[name] = {
                part: round(median(row[name].get(part, 0.0) for row in mine), 4) for part in value
            }
        elif isinstance(value, float):
            found[name] = round(median(row[name] for row in mine), 4)
    return found


def _notes(
    each: Sequence[Mapping[str, Any]], read: Mapping[str, float | int], switch: Mapping[str, Any]
) -> list[str]:
    notes = [
        "Medians of all loads; least and most in parentheses. First tokens were measured in loads "
        "of their own, so that they do not affect the gaps.",
        f"Reading the same {read['bytes'] / 1e6:.0f} MB takes {read['cold_seconds']:.2f} s from "
        f"disk, and {read['warm_seconds']:.2f} s from the page cache.",
        f"The switch of a staged group of {switch['adapters']}, excluding the engine: "
        f"{switch['switch_ms']['median']:.3f} ms (most {switch['switch_ms']['most']:.3f}); no "
        f"request was admitted for {switch['waited_ms']['median']:.2f} ms "
        f"(most {switch['waited_ms']['most']:.2f}) around it.",
    ]
    doors = [row for row in each if row.get("door_at_switch", {}).get("count")]
    if doors:
        steady, switch = (
            {part: median(row[name][part] for row in doors) for part in _PARTS}
            for name in ("door_steady", "door_at_switch")
        )
        notes.append(
            "A request that needs no engine, during the streams: "
            f"{steady['median']:.1f} ms (p99 {steady['p99']:.1f}, worst {steady['worst']:.1f}) in "
            f"the steady window; worst {switch['worst']:.1f} ms within 50 ms of the switch."
        )
    return notes
