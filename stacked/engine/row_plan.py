"""How the rows of a batch meet the slots of adapters, decided once per step for all layers.

Long runs of rows with the same slot (prefill) are multiplied run by run, in place. Few rows
for each of several neighbouring slots (decode) are stacked, and one batched product serves all.
Other batches are sorted by slot first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

SHORT_RUN = 16  # rows; if runs are shorter on average, sorting the rows is cheaper
# The cost of multiplying one more row, in readings of its slot's weights: measured for ranks 8, 16
# and 64, in float32 and bfloat16.
_READS_A_ROW = 0.1
# Times the real rows: bounds the copies that a stack makes of them. Below it every layer decides by
# `waste`.
_MOST_PADDED = 4


@dataclass(frozen=True)
class RowPlan:
    """How the rows of a batch meet the slots. ``slots`` is empty where no row has an adapter.

    Runs (``height`` 0): ``sizes[i]`` rows, one after the other, belong to ``slots[i]`` (-1: to no
    adapter). Stacked: ``height`` rows for each of the consecutive ``slots``. The rows are those of
    the batch in order, or, with ``order``, selected in that order; of the selected ones those at
    ``real`` (all, if None) are real and the others padding. For a stack that pads, or spans slots
    that no row uses, ``waste`` is the cost of that, in readings of a slot, and ``by_slot`` has the
    same rows slot by slot, for layers where that is cheaper.
    """

    rows: int
    slots: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    height: int = 0
    order: torch.Tensor | None = None
    real: torch.Tensor | None = None
    waste: float = 0.0
    by_slot: RowPlan | None = None


def plan_rows(row_slots: np.ndarray[Any, Any]) -> RowPlan:
    """Plan a batch from the slot of each of its rows, -1 for none."""
    count, busy = len(row_slots), int((row_slots >= 0).sum())
    if not busy:
        return RowPlan(count)
    order = np.argsort(row_slots, kind="stable")[count - busy :]  # base rows sort first
    present, sizes = np.unique(row_slots[order], return_counts=True)
    span, height = int(present[-1] - present[0]) + 1, int(sizes.max())
    if len(present) == 1 or height > SHORT_RUN or span * height > _MOST_PADDED * busy:
        return _plan_runs(row_slots, order, present, sizes)
    stack = _plan_stack(row_slots, order, present, sizes)
    waste = span - len(present) + _READS_A_ROW * (span * height - busy)
    if not waste:
        return stack
    return replace(stack, waste=waste, by_slot=_plan_runs(row_slots, order, present, sizes))


def _plan_runs(
    row_slots: np.ndarray[Any, Any],
    order: np.ndarray[Any, Any],
    present: np.ndarray[Any, Any],
    sizes: np.ndarray[Any, Any],
) -> RowPlan:
    """Multiply run by run: of rows in order or, if there are more runs, sorted by slot."""
    count, busy = len(row_slots), len(order)
    starts = np.flatnonzero(np.diff(row_slots, prepend=row_slots[0] - 1))
    runs = row_slots[starts]
    if busy < SHORT_RUN * (runs >= 0).sum() and (runs >= 0).sum() > len(present) + 1:
        rows = torch.from_numpy(order)
        return RowPlan(count, tuple(present.tolist()), tuple(sizes.tolist()), order=rows)
    lengths = np.diff(starts, append=count)
    return RowPlan(count, tuple(runs.tolist()), tuple(lengths.tolist()))


def _plan_stack(
    row_slots: np.ndarray[Any, Any],
    order: np.ndarray[Any, Any],
    present: np.ndarray[Any, Any],
    sizes: np.ndarray[Any, Any],
) -> RowPlan:
    """Stack the rows of neighbouring slots to equal heights, padding with any row."""
    count, height, first = len(row_slots), int(sizes.max()), int(present[0])
    slots = tuple(range(first, int(present[-1]) + 1))
    within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = (row_slots[order] - first) * height + within
    padded = np.full(len(slots) * height, order[0])
    padded[places] = order
    if len(padded) > len(order):
        real = torch.from_numpy(places)
        return RowPlan(count, slots, (), height, torch.from_numpy(padded), real)
    if np.array_equal(padded, np.arange(count)):
        return RowPlan(count, slots, (), height)
    return RowPlan(count, slots, (), height, torch.from_numpy(padded))
