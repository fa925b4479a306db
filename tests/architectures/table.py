"""What the walk found, as cells, and the table of them in docs/adapters.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.architectures.answers import ALONE, KINDS
from tests.architectures.bases import ARCHITECTURES

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN = "<!-- Written by `python -m tests.architectures.run --write-docs`. -->"
END = "<!-- End of what is written. -->"

CLOSE = 0.002
"""Log-probabilities that differ by less are the same: rounding, in another order of sums."""

BAD = ("wrong", "check yes, engine no", "engine died", "refused needlessly")
_HEAD = (
    "Architecture",
    "Base",
    "All linear",
    "Attention",
    "Output layer",
    "Embedding",
    "Not adaptable",
)


@dataclass
class Cell:
    """One adapter of one architecture, or its base: what PEFT, `check` and the engine make of it.

    `code` and `told` are `check`'s refusal, "" for none and None where it was not asked. `outcome`
    is the engine's: `right` or `wrong` answers, `base differs` where those on the base are wrong
    too, `refused`, `died`; `no engine` and `not served` where it does not start, with LoRA or at
    all; "" where it was not asked.
    """

    code: str | None = None
    told: str = ""
    not_made: str = ""
    """Why PEFT makes no such adapter."""
    no_effect: bool = False
    """Whether PEFT answers as without it: an adapter of what reads images, for one."""
    outcome: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.not_made or self.outcome == "not served":
            return "–"
        if self.code:
            needless = self.outcome == "right" and not self.no_effect
            return f"refused needlessly: {self.code}" if needless else f"refused: {self.code}"
        named = {"right": "served", "died": "engine died", "": "passed"}
        named |= {same: same for same in ("wrong", "base differs")}
        return named.get(self.outcome, "check yes, engine no")

    @property
    def is_bad(self) -> bool:
        return str(self).startswith(BAD)

    @property
    def as_base(self) -> str:
        named = {"right": "equal", "wrong": "differs", "died": "engine died"}
        named |= {"no engine": "not with adapters", "not served": "not served"}
        return named.get(self.outcome, "–")


Row = dict[str, Cell]


def rows(report: Iterable[str]) -> dict[str, Row]:
    """Cells by architecture and adapter, the base under "base", from the lines of a report."""
    found: dict[str, Row] = {}
    for line in report:
        entry = json.loads(line)
        row = found.setdefault(entry["architecture"], {"base": Cell()})
        if entry["event"] != "end":
            _take(row.setdefault(entry["adapter"], Cell()), entry["event"], entry["value"])
    for row in found.values():
        base = row["base"]
        if base.outcome in ("no engine", "not served"):
            for cell in row.values():
                if not cell.outcome:
                    cell.outcome, cell.reason = base.outcome, base.reason
        for cell in row.values():
            if base.outcome == "wrong" == cell.outcome and cell is not base:
                cell.outcome = "base differs"
    return found


def _take(cell: Cell, event: str, value: object) -> None:
    match event, value:
        case "not made", str(reason):
            cell.not_made = reason
        case "no effect", _:
            cell.no_effect = True
        case "check", [str(code), str(sentence)]:
            cell.code, cell.told = code, sentence
        case "begin", _:  # stands where nothing follows
            cell.outcome, cell.reason = "died", "its process ended"
        case "served", None:
            cell.outcome, cell.reason = "wrong", "other tokens"
        case "served", float(distance):
            cell.outcome = "right" if distance < CLOSE else "wrong"
            cell.reason = f"log-probabilities differ by {distance:.1e}"
        case (("refused" | "died" | "no engine" | "not served"), str(reason)):
            cell.outcome, cell.reason = event, reason


def bad(found: Mapping[str, Row]) -> list[str]:
    """What must not be: a line for each bad cell, and for each probe that an engine gainsays."""
    return [
        f"{name}, {adapter}: {cell}; check: {cell.told or 'passes'}; engine: {cell.reason}"
        for name, row in found.items()
        for adapter, cell in row.items()
        if adapter != "base" and cell.is_bad
    ]


def markdown(found: Mapping[str, Row]) -> str:
    """The table, a line for each architecture, and why what is refused is refused."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [_line(name, row) for name, row in found.items()]
    return "\n".join([*lines, "", *_notes(found)])


def _line(name: str, row: Row) -> str:
    cells = [row.get(kind, Cell(not_made="no such module")) for kind in KINDS]
    shown = [f"`{ARCHITECTURES[name][0]}` ({name})", row["base"].as_base, *map(str, cells)]
    return f"| {' | '.join([*shown, _alone(row)])} |"


def _alone(row: Row) -> str:
    """The names of modules that are not served where they alone are adapted."""
    names = [
        f"`{adapter.removeprefix(ALONE)}`"
        for adapter, cell in row.items()
        if adapter.startswith(ALONE) and str(cell) not in ("served", "–", "base differs")
    ]
    return ", ".join(names)


def _notes(found: Mapping[str, Row]) -> Iterable[str]:
    """A line for each cause of bases that are not served, and each of refused adapters."""
    causes: dict[str, list[str]] = {}
    for name, row in found.items():
        if row["base"].outcome == "not served":
            causes.setdefault(f"not served: {row['base'].reason[:120]}", []).append(name)
            continue
        for kind in KINDS:
            cell = row.get(kind, Cell())
            if cell.code and not cell.not_made:
                said = causes.setdefault(f"`{cell.code}`: {_general(cell.told)}", [])
                said += [name] if name not in said else []
    return [f"- {', '.join(names)}: {cause}" for cause, names in causes.items()]


def _general(sentence: str) -> str:
    """A refusal without what differs from one base and adapter to the next."""
    sentence = sentence.split(". ")[0].partition(": vLLM's")[0]
    sentence = re.sub(r"^\w+ (takes no|needs)", r"the class \1", sentence)
    sentence = re.sub(r"\d+ of \d+ adapted modules", "modules", sentence)
    return re.sub(r"(/\S+)?/([\w.-]+)", r"\2", sentence)


def written() -> str:
    """The table as it stands in the document."""
    _, _, after = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    return after.partition(END)[0].strip()


def write(table: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, begin, after = text.partition(BEGIN)
    _, end, rest = after.partition(END)
    if not (begin and end):
        raise ValueError(f"{DOCUMENT} has no place for the table")
    DOCUMENT.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest}", encoding="utf-8")


def codes(table: str) -> dict[str, dict[str, str]]:
    """What a table says of `check`: the code, "" for none, by architecture and kind of adapter."""
    found: dict[str, dict[str, str]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        named = re.search(r"\((.+)\)$", cells[0])
        if named and len(cells) == len(_HEAD):
            shown = zip(KINDS, cells[2:6], strict=True)
            found[named[1]] = {kind: cell.partition(": ")[2] for kind, cell in shown if cell != "–"}
    return found
