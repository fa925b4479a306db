"""The best that this machine's memory and arithmetic can do: plain copies and products.

Measured throughput is compared with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

# Each of the two is repeated for so long, and at least so often, for its median.
_SECONDS = 0.4
_LEAST_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Medians for all cores or one GPU, in one dtype."""

    device: str
    dtype: str
    copied: float
    """Bytes per second, read and written both counted."""
    multiplied: float
    """Floating-point operations per second in products of square matrices."""


def measure_ceilings(dtype: str) -> Ceilings:
    """Takes about a second, and 0.5 GB of memory, or 8 GB of the first GPU if there is one.

    `dtype` as torch calls it. Raises ValueError if torch has no such dtype.
    """
    import torch

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"no dtype {dtype!r}")
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    settle = torch.cuda.synchronize if gpu else (lambda: None)
    count = (4 << 30 if gpu else 256 << 20) // kind.itemsize
    source = torch.zeros(count, dtype=kind, device=device)
    target = torch.empty_like(source)
    copying = _seconds(lambda: target.copy_(source), settle)
    side = 8192 if gpu else 1024
    left, right = (torch.randn(side, side, dtype=kind, device=device) for _ in range(2))
    product = torch.empty_like(left)
    multiplying = _seconds(lambda: torch.mm(left, right, out=product), settle)
    return Ceilings(
        device=torch.cuda.get_device_name(device) if gpu else f"{torch.get_num_threads()} threads",
        dtype=dtype,
        copied=2 * count * kind.itemsize / copying,
        multiplied=2 * side**3 / multiplying,
    )


def _seconds(work: Callable[[], object], settle: Callable[[], None]) -> float:
    """The median time of one call; the first, which touches memory, is not counted."""
    work()
    settle()
    times: list[float] = []
    while len(times) < _LEAST_REPEATS or sum(times) < _SECONDS:
        began = time.perf_counter()
        work()
        settle()
        times.append(time.perf_counter() - began)
    return median(times)
