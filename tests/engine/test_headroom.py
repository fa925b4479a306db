"""Whether two engines fit: on a CPU by what is free, on GPUs by what the first one leaves."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.engine.machine import GIB, Gpu, Machine
from stacked.engine.plan import EnginePlan, headroom


def plan(gib: float, device: str = "cpu", **options: Any) -> EnginePlan:
    return EnginePlan(
        base="/base",
        served_names=("base",),
        device=device,
        options=options,
        max_rank=16,
        slots=1,
        host_adapters=1,
        rows=(),
        memory_bytes=int(gib * GIB),
    )


def machine(free: float, *gpus: float) -> Machine:
    cards = tuple(Gpu("card", int(size * GIB)) for size in gpus)
    return Machine(2, 64 * GIB, int(free * GIB), "cpu", frozenset(), cards)


@pytest.mark.parametrize(("need", "beside"), [(4, True), (9, False)])
def test_cpu_engine_needs_memory_that_is_free_now(need: float, beside: bool) -> None:
    room = headroom(plan(30).memory_bytes, plan(need), machine(8))
    assert room.enough is beside
    assert f"{need}.0 GiB of 8.0 GiB free memory" in room.text
    assert ("next to" in room.text) is beside
    assert ("503 NotReady" in room.text) is not beside


@pytest.mark.parametrize(("shares", "beside"), [((40, 39), True), ((72, 72), False)])
def test_gpu_engine_needs_what_the_running_ones_share_leaves(
    shares: tuple[float, float], beside: bool
) -> None:
    running, coming = (plan(share, "cuda") for share in shares)
    assert headroom(running.memory_bytes, coming, machine(1, 80)).enough is beside


def test_all_gpus_of_an_engine_count() -> None:
    coming = plan(60, "cuda", tensor_parallel_size=2)
    assert headroom(plan(90, "cuda").memory_bytes, coming, machine(1, 80, 80)).enough
