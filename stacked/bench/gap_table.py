"""The table, the charts and the figures of the gaps measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from stacked.bench.figures import Spread
from stacked.bench.online import SIDES
from stacked.bench.report import Bar, Chart, Result

_WINDOWS = {"steady": "steady", "loading": "loading"}
_HEADER = (
    "server",
    "window",
    "gap ms",
    "its p99",
    "worst",
    "worst to steady p99",
    "first token ms",
    "worst",
    "seconds until usable",
)


def gaps_result(
    summary: Mapping[str, Any],
    settings: Mapping[str, Any],
    each: Sequence[Mapping[str, Any]],
    read: Mapping[str, float | int],
    switch: Mapping[str, Any],
) -> Result:
    """`each` has a row for every load: its side, its figures.

    `read` is the time to read the same bytes, `switch` what the switch of a large group costs.
    """
    sides = list(dict.fromkeys(str(row["side"]) for row in each))
    rows, listed, ratios, worst = [], [], [], []
    for side in sides:
        mine = [row for row in each if row["side"] == side]
        share = Spread.of([row["worst_to_steady_p99"] for row in mine])
        usable = Spread.of([row["seconds_to_usable"] for row in mine])
        for window in _WINDOWS:
            last = [share.text(2), usable.text(2)] if window == "loading" else ["", ""]
            rows.append([SIDES[side], window, *_cells(mine, window, last)])
            worsts = Spread.of([row[f"gaps_{window}"]["worst"] for row in mine])
            worst.append(Bar(window, SIDES[side], worsts))
        ratios.append(Bar("worst gap", SIDES[side], share))
        listed.append(
            {"side": side, "medians": _medians(mine), "worst_to_steady_p99": share.tree()}
        )
    data = {
        "benchmark": "swap --gaps",
        "subject": dict(summary),
        "settings": dict(settings),
        "read_the_same_bytes": dict(read),
        "switch_of_a_staged_group": dict(switch),
        "rows": listed,
        "each": [dict(row) for row in each],
    }
    charts = [
        Chart("Worst gap between tokens", "ms", worst),
        Chart("Worst gap while loading, to the steady p99", "ratio", ratios, line=1.0),
    ]
    return Result("swap --gaps", data, _HEADER, rows, charts, _notes(each, read, switch))


def _cells(mine: Sequence[Mapping[str, Any]], window: str, last: Sequence[str]) -> list[str]:
    gaps = [row[f"gaps_{window}"] for row in mine]
    first = [row[f"first_token_{window}"] for row in mine]
    return [
        *(f"{median(gap[name] for gap in gaps):.1f}" for name in ("median", "p99", "worst")),
        last[0],
        *(f"{median(wait[name] for wait in first):.1f}" for name in ("median", "worst")),
        last[1],
    ]


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
            {part: median(row[name][part] for row in doors) for part in ("median", "p99", "worst")}
            for name in ("door_steady", "door_at_switch")
        )
        notes.append(
            "A request that needs no engine, during the streams: "
            f"{steady['median']:.1f} ms (p99 {steady['p99']:.1f}, worst {steady['worst']:.1f}) in "
            f"the steady window; worst {switch['worst']:.1f} ms within 50 ms of the switch."
        )
    return notes
