"""How refusals spell names and sizes, and the one strictness that every JSON file is read with."""

from __future__ import annotations

import json
from typing import Any


def quoted(text: str, limit: int = 120) -> str:
    """`text` in quotes for a sentence: control characters escaped, cut to `limit` characters."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def shown(value: Any) -> str:
    """A JSON value for a sentence, cut short."""
    return "missing" if value is None else quoted(json.dumps(value), 80)[1:-1]


def size(count: int) -> str:
    """A byte count for people: `39.1 MiB`."""
    if count < 1024:
        return f"{count} bytes"
    value = float(count)
    for unit in ("KiB", "MiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} GiB"


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=…)`: ValueError where a key stands twice in one object.

    Readers disagree about which of the two counts, so a check would not hold for the engine.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {quoted(twice)} stands twice")
    return value
