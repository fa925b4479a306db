"""The LoRA product on a CPU: each row of a batch gets its own adapter's weights, or none at all.

It owns the arithmetic between activations and vLLM's adapter slots; it must not know which adapter
sits in a slot, who asked, or anything of groups and requests.

How it works. Once per step, ``update_metadata`` turns the slot of every row into a ``RowPlan``:
runs of rows with the same slot, or, where runs are many and short, the adapter rows sorted by slot.
Every layer then does one shrink (rows x A) and one expand (x B, added to the output in place) for
each slot present, on views of vLLM's own tensors. Rows without an adapter take part in nothing:
what the base layer computed for them stays bit for bit.

Relies on (vLLM 0.26 to 0.32):
- ``PunicaWrapperBase.update_metadata`` fills ``token_lora_indices`` and ``sampler_indices`` (-1
  means no adapter) and ``_embeddings_indices``;
- slot tensors are ``[slots, 1, rank, in]`` and ``[slots, 1, out, rank]``, live as long as their
  layer, and are written by torch operations in place: a write through ``.data`` or numpy would not
  show in ``_version``, by which a slot's used rank is remembered;
- LoRA on a CPU runs without torch.compile (``CpuPlatform.check_and_update_config``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

SHORT_RUN = 16  # rows; where runs are shorter on average, sorting the rows pays


@dataclass(frozen=True)
class RowPlan:
    """``sizes[i]`` rows, one after the other, belong to ``slots[i]`` (-1: to no adapter).

    The rows are all ``rows`` of the batch as they stand, or, where ``order`` is given, only those
    with an adapter, picked in that order.
    """

    rows: int
    sizes: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    order: torch.Tensor | None = None


def plan_rows(row_slots: np.ndarray[Any, Any]) -> RowPlan:
    """Plan a batch from the slot of each of its rows, -1 for none."""
    count, adapter_rows = len(row_slots), int((row_slots >= 0).sum())
    if not adapter_rows:
        return RowPlan(count)
    starts = np.flatnonzero(np.diff(row_slots, prepend=row_slots[0] - 1))
    slots, sizes = row_slots[starts], np.diff(starts, append=count)
    present = np.unique(slots[slots >= 0])
    runs = int((slots >= 0).sum())
    if runs <= 2 * len(present) or adapter_rows >= SHORT_RUN * runs:
        return RowPlan(count, tuple(sizes.tolist()), tuple(slots.tolist()))
    order = np.argsort(row_slots, kind="stable")[count - adapter_rows :]
    sizes = np.bincount(row_slots[order])[present]
    return RowPlan(count, tuple(sizes.tolist()), tuple(present.tolist()), torch.from_numpy(order))


@dataclass(frozen=True)
class Factor:
    """One slot's part in one slice of the output: ``y[:, start:stop] += x @ a @ b``."""

    a: torch.Tensor | None  # [in, rank]; None where rows come looked up in A already
    b: torch.Tensor  # [rank, out]
    rank: int
    start: int
    stop: int


class Layer:
    """The slot tensors of one layer, and for each slot the factors that are not zero.

    A module that an adapter does not target, and the rank it does not use, are zeros in its slot.
    They are found by looking once after slots were written, and left out from then on.
    """

    def __init__(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], widths: Sequence[int]
    ) -> None:
        self.a, self.b, self.dtype = tuple(a), tuple(b), b[0].dtype
        stops = np.cumsum(widths).tolist()
        self.columns = list(zip([0, *stops[:-1]], stops, strict=True))
        self._watched = self.a or self.b
        # Inference tensors have no version; their slots are taken as full.
        self._trim = not any(tensor.is_inference() for tensor in self._watched)
        self._version = -1
        self._slots: dict[int, tuple[Factor, ...]] = {}

    def factors(self, slots: Sequence[int]) -> list[tuple[Factor, ...]]:
        """The factors of each slot: none for -1 and for an adapter that leaves this layer alone."""
        if self._trim:
            version = sum([tensor._version for tensor in self._watched])  # none ever falls
            if version != self._version:
                self._slots = {-1: ()}
                self._version = version
        return [self._slots[s] if s in self._slots else self._look(s) for s in slots]

    def _look(self, slot: int) -> tuple[Factor, ...]:
        factors = []
        for i, (start, stop) in enumerate(self.columns if slot >= 0 else ()):
            b = matrix(self.b[i], slot)[: stop - start].t()
            a = matrix(self.a[i], slot) if self.a else None
            rank = self._used_rank(b if a is None else a)
            if rank:
                factors.append(
                    Factor(None if a is None else a[:rank].t(), b[:rank], rank, start, stop)
                )
        self._slots[slot] = tuple(factors)
        return self._slots[slot]

    def _used_rank(self, by_rank: torch.Tensor) -> int:
        """The number of rows of ``[rank, n]`` up to the last one that is not all zeros."""
        if not self._trim:
            return len(by_rank)
        used = (by_rank != 0).any(dim=1).nonzero().flatten().tolist()
        return used[-1] + 1 if used else 0


class GroupedLora(PunicaWrapperBase):  # type: ignore[misc]
    """vLLM's LoRA interface for a CPU: every method adds to ``y`` in place and returns nothing."""

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        self._embeddings_indices.zero_()  # rows beyond the mapping are looked up too
        self._layers: dict[int, Layer] = {}
        self._tokens = RowPlan(0)
        self._samples = RowPlan(0)

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take over the slot of every row of the next steps (see ``PunicaWrapperBase``)."""
        super().update_metadata(*args, **kwargs)
        self._tokens = plan_rows(self.token_lora_indices.numpy())
        self._samples = plan_rows(self.sampler_indices.numpy())

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """``y[row, slice] += x[row] @ A[slot].T @ B[slot].T * scale``, slices side by side.

        ``y`` is ``[rows, sum(output_slices)]`` and ``x`` is ``[rows, in]``.
        """
        if self._tokens.slots:
            layer = self._layer(lora_a_stacked, lora_b_stacked, output_slices)
            add_product(y, x, layer, self._tokens, scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any
    ) -> None:
        """``y[row] += x[row] @ B[slot].T``; ``x`` is ``[rows, rank]``, looked up in A by vLLM."""
        if self._tokens.slots:
            layer = self._layer((), (lora_b_stacked,), lora_b_stacked.shape[-2:-1])
            add_product(y, x, layer, self._tokens, 1.0)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """``y[row, :vocab] += x[row] @ A[slot].T @ B[slot].T * scale``, see ``_logit_rows``."""
        if self._tokens.slots or self._samples.slots:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            width = min(lora_b_stacked.shape[-2], y.shape[-1])  # either may be padded
            layer = self._layer((lora_a_stacked,), (lora_b_stacked,), (width,))
            add_product(y, x, layer, self._logit_rows(x), scale)

    def add_shrink(
        self,
        y: Sequence[torch.Tensor] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """``y[i][row] += x[row] @ A[i][slot].T * scale``: the half before a gather across ranks."""
        for slot, rows in rows_by_slot(self.token_lora_indices):
            for i, a in enumerate(lora_a_stacked):
                shrunk = x[rows].to(a.dtype) @ matrix(a, slot).t() * scale
                y[i].index_add_(0, rows, shrunk.to(y[i].dtype))

    def add_expand(
        self,
        y: torch.Tensor,
        x: Sequence[torch.Tensor] | torch.Tensor,
        lora_b_stacked: Sequence[torch.Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        **kwargs: Any,
    ) -> None:
        """``y[row, slice] += x[i][row] @ B[i][slot].T``: the half after a gather across ranks."""
        stops = offset_start + np.cumsum(output_slices)
        for slot, rows in rows_by_slot(self.token_lora_indices):
            for i, (b, width) in enumerate(zip(lora_b_stacked, output_slices, strict=True)):
                part = y[:, int(stops[i]) - width : int(stops[i])]
                product = x[i][rows].to(b.dtype) @ matrix(b, slot).t()
                part.index_add_(0, rows, product.to(y.dtype))

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """``y[row] = x[row] @ W[slot].T + bias[slot]`` where a slot brings a whole layer."""
        for slot, rows in rows_by_slot(self.sampler_indices):
            if module_enabled[slot]:
                product = (x[rows] @ matrix(weight_stacked, slot).t()).to(y.dtype)
                y.index_copy_(0, rows, product + bias_stacked[slot].to(y.dtype))

    def add_lora_fused_moe(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_experts()

    def add_lora_w13(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_experts()

    def add_lora_w2(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_experts()

    def _layer(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], widths: Sequence[int]
    ) -> Layer:
        layer = self._layers.get(id(b[0]))  # kept alive by its layer here, so the id is not reused
        if layer is None:
            layer = self._layers[id(b[0])] = Layer(a, b, widths)
        return layer

    def _logit_rows(self, x: torch.Tensor) -> RowPlan:
        """The plan for hidden states on their way to logits.

        vLLM brings either the rows it samples from, picked into a tensor of their own, or, for
        prompt logprobs, a window on the hidden states of all the batch's tokens.
        """
        rows, width = x.shape
        alone = x.untyped_storage().nbytes() == rows * width * x.element_size()
        if alone and rows == self._samples.rows:
            return self._samples
        first = x.storage_offset() // width
        window = self.token_lora_indices[first : first + rows]
        if len(window) != rows:
            raise ValueError(
                f"{rows} rows of logits fit neither the {self._samples.rows} sampled rows "
                f"nor the {self._tokens.rows} tokens of the batch"
            )
        return plan_rows(window.numpy())


def add_product(
    y: torch.Tensor, x: torch.Tensor, layer: Layer, plan: RowPlan, scale: float
) -> None:
    """Add the LoRA product of every row of ``plan`` to ``y``; rows beyond the plan are padding."""
    factors = layer.factors(plan.slots)
    if not any(factors):
        return
    if not plan.rows == len(x) == len(y):
        if min(len(x), len(y)) < plan.rows:
            raise ValueError(f"a batch of {plan.rows} rows met a layer with {len(x)} rows")
        x, y = x[: plan.rows], y[: plan.rows]
    if x.dtype != layer.dtype:
        x = x.to(layer.dtype)
    if plan.order is None:
        _add_runs(y, x, factors, plan.sizes, scale)
    else:
        picked = y.index_select(0, plan.order)
        _add_runs(picked, x.index_select(0, plan.order), factors, plan.sizes, scale)
        y.index_copy_(0, plan.order, picked)


def _add_runs(
    y: torch.Tensor,
    x: torch.Tensor,
    factors: Sequence[tuple[Factor, ...]],
    sizes: tuple[int, ...],
    scale: float,
) -> None:
    width, same_dtype = y.shape[1], y.dtype == x.dtype
    for rows_y, rows_x, parts in zip(y.split(sizes), x.split(sizes), factors, strict=True):
        for part in parts:
            whole = part.stop - part.start == width
            out = rows_y if whole else rows_y[:, part.start : part.stop]
            shrunk = rows_x[:, : part.rank] if part.a is None else torch.mm(rows_x, part.a)
            if same_dtype:
                out.addmm_(shrunk, part.b, alpha=scale)
            else:  # logits in float32 over weights in bfloat16
                out.add_(torch.mm(shrunk, part.b), alpha=scale)


def matrix(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """One slot's ``[rows, columns]`` of ``[slots, 1, rows, columns]``."""
    return stacked[slot].view(stacked.shape[-2:])


def rows_by_slot(row_slots: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Each slot present with the indices of its rows, for what is too rare to be planned."""
    for slot in row_slots.unique().tolist():
        if slot >= 0:
            yield slot, (row_slots == slot).nonzero().flatten()


def _refuse_experts() -> NoReturn:
    raise NotImplementedError("LoRA on fused mixture-of-experts layers is not supported on a CPU")
