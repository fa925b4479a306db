"""Whether a second engine fits next to the running one, from their plans and this machine.

Pure arithmetic on estimates: if an engine does not fit after all, it fails to start, and the
running one is not affected.
"""

from __future__ import annotations

from dataclasses import dataclass

from stacked.engine.machine import GIB, Machine
from stacked.engine.plan import EnginePlan


@dataclass(frozen=True, slots=True)
class Room:
    """Whether there is room for both, with the arithmetic in a sentence."""

    enough: bool
    text: str


def headroom(running: EnginePlan, coming: EnginePlan, machine: Machine) -> Room:
    """On a CPU from the memory free now, on GPUs from what the running engine's share leaves."""
    need = coming.memory_bytes
    if coming.device == "cpu":
        free, place = machine.available_bytes, "free memory"
    else:
        gpus = int(coming.options.get("tensor_parallel_size", 1))
        total = sum(gpu.memory_bytes for gpu in machine.gpus[:gpus])
        free, place = total - running.memory_bytes, "GPU memory that the old engine leaves"
    sizes = f"{need / GIB:.1f} GiB of {max(0, free) / GIB:.1f} GiB {place}"
    if need <= free:
        return Room(True, f"the new engine starts next to the old one: it needs {sizes}")
    return Room(
        False,
        f"the old engine is stopped before the new one starts, which needs {sizes}; requests get "
        "503 NotReady meanwhile",
    )
