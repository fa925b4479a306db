"""What the walk found, as cells, and the table of them in docs/adapters.md.

It must not know how anything was found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.architectures.bases import ARCHITECTURES

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN = "<!-- begin: architectures, written by `python -m tests.architectures.run --write-docs` -->"
END = "<!-- end: architectures -->"

CLOSE = 0.002
"""Log-probabilities that differ by less are the same: rounding, in another order of sums."""

BAD = ("wrong", "check yes, engine no", "engine died", "refused needlessly")
COLUMNS = {"all": "all linear", "attention": "attention", "head": "output layer", "embed": "embedding"}
ALONE = "only "


@dataclass
class Cell:
    """One adapter of one architecture: what `check` says, what PEFT and the engine make of it."""

    code: str | None = None
    told: str = ""
    not_made: str = ""
    no_effect: bool = False
    """Whether PEFT answers as without it: an adapter of what reads images, for one."""
    outcome: str = ""
    """`right`, `wrong`, `refused`, `died`, `no engine`; empty where the engine was not asked."""
    reason: str = ""

    def __str__(self) -> str:
        if self.not_made:
            return "–"
        if self.code:
            needless = self.outcome == "right" and not self.no_effect
            return f"refused needlessly: {self.code}" if needless else f"refused: {self.code}"
        return {
            "right": "served",
            "wrong": "wrong",
            "died": "engine died",
            "": "passed",
        }.get(self.outcome, "check yes, engine no")

    @property
    def is_bad(self) -> bool:
        return str(self).startswith(BAD)


Row = dict[str, Cell]


def rows(report: Iterable[str]) -> dict[str, Row]:
    """Cells by architecture and adapter, from the lines of a report."""
    found: dict[str, Row] = {}
    for line in report:
        entry = json.loads(line)
        row = found.setdefault(entry["architecture"], {"base": Cell()})
        cell, value = row.setdefault(entry["adapter"] or "base", Cell()), entry["value"]
        match entry["event"]:
            case "not made":
                cell.not_made = value
            case "no effect":
                cell.no_effect = True
            case "check":
                cell.code, cell.told = value
            case "begin":
                cell.outcome, cell.reason = "died", "the process ended"
            case "served":
                close = value is not None and value < CLOSE
                cell.outcome = "right" if close else "wrong"
                cell.reason = f"log-probabilities differ by {value}" if value else "other tokens"
            case "refused" | "died" | "no engine" as outcome:
                cell.outcome, cell.reason = outcome, value
    for row in found.values():
        if row["base"].outcome == "no engine":
            for cell in row.values():
                if not cell.outcome:
                    cell.outcome, cell.reason = "no engine", row["base"].reason
    return found


def base_cell(cell: Cell) -> str:
    return {"right": "equal", "wrong": "differs", "died": "engine died", "": "–"}.get(
        cell.outcome, "no engine"
    )


def markdown(found: Mapping[str, Row]) -> str:
    """The table, a line for each architecture."""
    head = ["Architecture", "Base", *COLUMNS.values(), "modules one by one"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, row in found.items():
        cells = [str(row.get(adapter, Cell(not_made="?"))) for adapter in COLUMNS]
        line = [f"`{ARCHITECTURES[name][0]}` ({name})", base_cell(row["base"]), *cells, _alone(row)]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def _alone(row: Row) -> str:
    by_result: dict[str, list[str]] = {}
    for adapter, cell in row.items():
        if adapter.startswith(ALONE) and not cell.not_made:
            by_result.setdefault(str(cell), []).append(adapter.removeprefix(ALONE))
    return "; ".join(f"{result}: {', '.join(names)}" for result, names in by_result.items())


def reasons(found: Mapping[str, Row]) -> str:
    """Every cell that is bad or refused, with the sentences of `check` and of the engine."""
    lines = []
    for name, row in found.items():
        for adapter, cell in row.items():
            if adapter == "base" and cell.outcome == "right":
                continue
            if cell.not_made:
                lines.append(f"{name}/{adapter}: PEFT: {cell.not_made}")
            elif adapter == "base" or str(cell) != "served":
                mark = "BAD " if cell.is_bad and adapter != "base" else ""
                shown = base_cell(cell) if adapter == "base" else str(cell)
                lines.append(f"{mark}{name}/{adapter}: {shown}\n    check: {cell.told}\n    engine: {cell.outcome} {cell.reason}")
    return "\n".join(lines)
