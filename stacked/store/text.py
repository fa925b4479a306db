"""Names and sizes in messages, and the strict reading of JSON files."""

from __future__ import annotations

import json
from typing import Any


def quoted(text: str, limit: int = 120) -> str:
    """`text` in quotes for a message: control characters escaped, cut to `limit` characters."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def shown(value: Any) -> str:
    """A JSON value for a message, cut short."""
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
    """For `json.loads(object_pairs_hook=…)`: ValueError if an object has a key twice.

    Parsers disagree about which one counts, so a check might not hold for the engine.
    """
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"key {quoted(name)} appears twice")
        value[name] = item
    return value
