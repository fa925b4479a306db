"""The table, the charts and the figures of the gaps measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from stacked.bench.figures import Spread
from stacked.bench.report import Column, Line, Result, Table
from stacked.bench.server import SIDES

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
