"""Swaps leave no memory behind: what the engine holds after 50 is what it held after 5."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from tests import tiny
from tests.live.lab import RANK, Lab
from tests.processes import alive, descendants, resident_bytes

SWAPS = 50
EACH = 8
MIB = 1024**2


def engine_bytes() -> int:
    """What is in memory of the process that holds base and adapters: the largest that runs."""
    return max(resident_bytes(pid) for pid, _ in alive(descendants(os.getpid())))


@pytest.mark.long
def test_fifty_swaps_leave_the_memory_where_five_left_it(lab: Lab, tmp_path: Path) -> None:
    """Every swap brings adapters that were never there, of the largest size that fits."""
    pattern = tiny.build_adapter(
        tmp_path / "large", lab.base.path, 9, rank=RANK, target_modules=tiny.ALL_LINEAR
    )
    after: list[int] = []
    staged = 0
    for _ in range(SWAPS):
        adapters = [lab.add(lab.source(pattern=pattern)) for _ in range(EACH)]
        outcome = lab.update({f"k{at}": adapter for at, adapter in enumerate(adapters)})
        assert outcome.report is not None, outcome
        assert outcome.report.left == ()
        for key in islice(lab.served(), 2):
            lab.run(lab.answer(key))
        staged += sum(adapter.bytes for adapter in adapters)
        after.append(engine_bytes())
    told = [f"{after[at - 1] / MIB:.1f}" for at in (1, 5, 10, 20, 30, 40, 50)]
    print(f"engine MiB after 1, 5, 10, 20, 30, 40, 50 swaps: {', '.join(told)}")
    print(
        f"staged in all: {staged / MIB:.1f} MiB; after 50 over after 5: {after[49] / after[4]:.4f}"
    )
    assert after[49] <= 1.05 * after[4]
    # Nor a small part of every adapter, which five percent of a whole engine would hide.
    assert after[49] - after[4] <= 0.1 * staged * (SWAPS - 5) / SWAPS
