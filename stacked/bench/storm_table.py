"""The figures of a storm as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HIDDEN = ("groups", "first_violations", "each", "engine")


def rows_of(figures: Mapping[str, Any]) -> list[list[str]]:
    """One line per figure, also for a figure with parts."""
    rows = []
    for name, value in figures.items():
        if name in _HIDDEN:
            continue
        if name == "phases_seconds":
            rows += [
                [f"seconds {phase}", f"median {each['median']:.3f}, most {each['most']:.3f}"]
                for phase, each in value.items()
            ]
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {count}" for part, count in value.items()) or "none"
        rows.append([name.replace("_", " "), str(value)])
    return rows


def violations_of(figures: Mapping[str, Any]) -> Sequence[str]:
    """The first of them, in words."""
    return list(figures.get("first_violations", ()))
