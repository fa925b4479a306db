"""The LoRA product on a CPU: each row of a batch gets its own adapter's weights, or none at all.

How it works. Once per step, ``update_metadata`` turns the slot of every row into a ``RowPlan``, see
``stacked.engine.row_plan``. Each layer then does a shrink (rows x A, all slices of a
fused layer at once) and an expand for each slice (x B, added to the output in place). Rows without
an adapter are not touched: what the base layer computed for them stays bit for bit.

The slot tensors keep their shapes and owners, but the layout of their memory is changed on first
use: the slices of A side by side, B contiguous along the output.

Relies on:
- ``PunicaWrapperBase.update_metadata`` fills ``token_lora_indices`` and ``sampler_indices`` (-1
  means no adapter) and ``_embeddings_indices``;
- slot tensors are ``[slots, 1, rank, in]`` and ``[slots, 1, out, rank]``, live as long as their
  layer, and are written by indexing them, in place: an older view would miss the new
  layout, and a write through ``.data`` or numpy would not change ``_version``, by which a slot's
  used rank is cached;
- LoRA on a CPU runs without torch.compile (``CpuPlatform.check_and_update_config``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from stacked.engine.row_plan import RowPlan, plan_rows

# What a core reads from memory in the time that one more run costs a layer. PyTorch's products of
# few rows take three times as long in bfloat16.
_BYTES_A_RUN = {torch.float32: 128 * 1024, torch.bfloat16: 512 * 1024}
# Products of stacks in these dtypes took 1.3 to 1.9 times as long when unused ranks were left out:
# the rest has gaps, and the library first copies it into one piece.
_WHOLE_STACKS = frozenset({torch.bfloat16})


@dataclass(frozen=True)
class Slice:
    """``y[..., start:stop] += shrunk[..., low:high] @ b``; ``b`` is ``[..., high - low, out]``."""

    low: int
    high: int
    b: torch.Tensor
    start: int
    stop: int


@dataclass(frozen=True)
class Factors:
    """What one slot, or a stack of slots, multiplies rows with. No slices: the layer is left alone.

    ``a`` is ``[..., in, rank of all slices]``, or None if the rows have already been looked up in
    A.
    """

    a: torch.Tensor | None = None
    slices: tuple[Slice, ...] = ()

    @cached_property
    def nbytes(self) -> int:
        """The bytes that are read to multiply with them."""
        read = [part.b for part in self.slices] + ([] if self.a is None else [self.a])
        sizes: list[int] = [each.nbytes for each in read]
        return sum(sizes)


class Layer:
    """The slot tensors of one layer, with the rank that each slot uses of each slice.

    A module that an adapter does not target, and the rank it does not use, are zeros in its slot.
    They are found once after slots were written, and skipped from then on. After writes within
    ``writing``, which names its slot, only that slot is examined again.
    """

    def __init__(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], widths: Sequence[int]
    ) -> None:
        self.dtype, self.rank = b[0].dtype, b[0].shape[-1]
        stops = np.cumsum(widths).tolist()
        self.columns = list(zip([0, *stops[:-1]], stops, strict=True))
        self._watched = tuple(a) or tuple(b)
        # Inference tensors have no version; their slots are treated as full.
        self._trim = not any(tensor.is_inference() for tensor in self._watched)
        self._a, self._b = lay_out(a, b)
        self._version = -1
        self._ranks: dict[int, tuple[int, ...]] = {}
        self._factors: dict[tuple[int, ...], Factors] = {}

    def factors(self, slots: tuple[int, ...]) -> Factors:
        """The factors of one slot (none for -1), or of several consecutive ones as a stack."""
        if self._trim:
            version = self._now()
            if version != self._version:
                self._ranks, self._factors, self._version = {}, {}, version
        found = self._factors.get(slots)
        if found is None:
            found = self._factors[slots] = self._build(slots)
        return found

    @contextmanager
    def writing(self, slot: int) -> Iterator[None]:
        """Around writes to only one slot: what is known about the others stays valid."""
        known = self._trim and self._now() == self._version
        yield
        if known:
            self._ranks.pop(slot, None)
            self._factors = {at: it for at, it in self._factors.items() if slot not in at}
            self._version = self._now()
            self.factors((slot,))

    def _now(self) -> int:
        versions: list[int] = [tensor._version for tensor in self._watched]
        return sum(versions)  # none ever falls

    def _build(self, slots: tuple[int, ...]) -> Factors:
        if slots == (-1,):
            return Factors()
        which = slots[0] if len(slots) == 1 else slice(slots[0], slots[-1] + 1)
        ranks = [max(of_slice) for of_slice in zip(*map(self._used_ranks, slots), strict=True)]
        whole = len(slots) > 1 and self.dtype in _WHOLE_STACKS
        if whole:
            ranks = [self.rank if used else 0 for used in ranks]
        slices = tuple(
            Slice(i * self.rank, i * self.rank + rank, b[which, :rank, : stop - start], start, stop)
            for i, (rank, b, (start, stop)) in enumerate(
                zip(ranks, self._b, self.columns, strict=True)
            )
            if rank
        )
        if not slices or self._a is None:
            return Factors(None, slices)
        high = None if whole else slices[-1].high
        return Factors(self._a[which, :high].transpose(-1, -2), slices)

    def _used_ranks(self, slot: int) -> tuple[int, ...]:
        """For each slice, the number of rows of A (of B, if there is no A) up to the last used."""
        if not self._trim:
            return (self.rank,) * len(self.columns)
        if slot not in self._ranks:
            by_rank = self._b[0][slot] if self._a is None else self._a[slot]
            # If every slice uses its last row, most of the work, the other rows, can be skipped.
            if bool(by_rank[self.rank - 1 :: self.rank].any(dim=1).all()):
                self._ranks[slot] = (self.rank,) * (len(by_rank) // self.rank)
                return self._ranks[slot]
            used = (by_rank != 0).any(dim=1).view(-1, self.rank).tolist()
            last = [max((r + 1 for r, live in enumerate(row) if live), default=0) for row in used]
            self._ranks[slot] = tuple(last)
        return self._ranks[slot]


def lay_out(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Move slot tensors to the kernel's layout: A as ``[slots, slices * rank, in]``, B as
    ``[slots, rank, out]`` for each slice. The given tensors become views of it, so later writes
    to them arrive here.
    """
    # The new memory must be of the old one's kind, or writes to it would not be counted.
    with torch.inference_mode(b[0].is_inference()):
        packed = torch.cat([one.flatten(0, 1) for one in a], dim=1) if a else None
        parts = () if packed is None else packed.unsqueeze(1).split(b[0].shape[-1], dim=2)
        for one, part in zip(a, parts, strict=True):
            one.data = part
        by_rank = [one.flatten(0, 1).transpose(1, 2).contiguous() for one in b]
        for one, part in zip(b, by_rank, strict=True):
            one.data = part.transpose(1, 2).unsqueeze(1)
    return packed, by_rank


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
        """``y[row] = x[row] @ W[slot].T + bias[slot]`` for slots with a whole layer."""
        for slot, rows in rows_by_slot(self.sampler_indices):
            if module_enabled[slot]:
                product = (x[rows] @ matrix(weight_stacked, slot).t()).to(y.dtype)
                y.index_copy_(0, rows, product + bias_stacked[slot].to(y.dtype))

    def add_lora_fused_moe(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Experts have no adapters here, see `cpu_layers`."""
        what = "LoRA on fused mixture-of-experts layers"
        raise NotImplementedError(f"{what} is not supported on a CPU")

    add_lora_w13 = add_lora_w2 = add_lora_fused_moe

    def writing(
        self, lora_b_stacked: Sequence[torch.Tensor] | torch.Tensor, slot: int
    ) -> AbstractContextManager[None]:
        """Around writes to one slot of the layer that owns these tensors, see `Layer.writing`."""
        layer = self._layers.get(id(lora_b_stacked)) or self._layers.get(id(lora_b_stacked[0]))
        return nullcontext() if layer is None else layer.writing(slot)

    def _layer(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], widths: Sequence[int]
    ) -> Layer:
        layer = self._layers.get(id(b[0]))  # kept alive by its layer here, so the id is not reused
        if layer is None:
            layer = self._layers[id(b[0])] = Layer(a, b, widths)
        return layer

    def _logit_rows(self, x: torch.Tensor) -> RowPlan:
        """The plan for hidden states on their way to logits.

        vLLM passes either the rows that it samples from, in a tensor of their own, or, for prompt
        logprobs, a window of the hidden states of all tokens in the batch.
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
    if plan.by_slot and _is_cheaper_by_slot(layer, plan, plan.by_slot):
        plan = plan.by_slot
    stacked = (layer.factors(plan.slots),) if plan.height else None
    factors = stacked or [layer.factors((slot,)) for slot in plan.slots]
    if not any(one.slices for one in factors):
        return
    if not plan.rows == len(x) == len(y):
        if min(len(x), len(y)) < plan.rows:
            raise ValueError(f"a batch of {plan.rows} rows met a layer with {len(x)} rows")
        x, y = x[: plan.rows], y[: plan.rows]
    if x.dtype != layer.dtype:
        x = x.to(layer.dtype)
    rows_y, rows_x = y, x
    if plan.order is not None:
        rows_y, rows_x = y.index_select(0, plan.order), x.index_select(0, plan.order)
    if stacked:
        shape = (len(plan.slots), plan.height, -1)
        _add_stacked(rows_y.view(shape), rows_x.reshape(shape), factors[0], scale)
    elif len(factors) == 1:  # nothing to split, and decoding one request should cost little
        _add_run(rows_y, rows_x, factors[0], scale)
    else:
        for part_y, part_x, one in zip(
            rows_y.split(plan.sizes), rows_x.split(plan.sizes), factors, strict=True
        ):
            if one.slices:
                _add_run(part_y, part_x, one, scale)
    if plan.order is not None:
        if plan.real is None:
            y.index_copy_(0, plan.order, rows_y)
        else:
            real = plan.real
            y.index_copy_(0, plan.order.index_select(0, real), rows_y.index_select(0, real))


def _is_cheaper_by_slot(layer: Layer, plan: RowPlan, by_slot: RowPlan) -> bool:
    """Whether a stack's waste in this layer costs more than multiplying slot by slot."""
    first, last = layer.factors(plan.slots[:1]), layer.factors(plan.slots[-1:])  # neither is idle
    wasted = plan.waste * max(first.nbytes, last.nbytes)
    return wasted > (len(by_slot.slots) - 1) * _BYTES_A_RUN.get(layer.dtype, 0)


def _add_run(y: torch.Tensor, x: torch.Tensor, factors: Factors, scale: float) -> None:
    """``y`` and ``x`` are ``[rows, ...]`` of one slot."""
    shrunk = x if factors.a is None else torch.mm(x, factors.a)
    for part in factors.slices:
        out = y if part.stop - part.start == y.shape[1] else y[:, part.start : part.stop]
        mine = shrunk[:, part.low : part.high]
        if y.dtype == x.dtype:
            out.addmm_(mine, part.b, alpha=scale)
        else:  # logits in float32 over weights in bfloat16
            out.add_(torch.mm(mine, part.b), alpha=scale)


def _add_stacked(y: torch.Tensor, x: torch.Tensor, factors: Factors, scale: float) -> None:
    """``y`` and ``x`` are ``[slots, rows, ...]``."""
    shrunk = x if factors.a is None else torch.bmm(x, factors.a)
    for part in factors.slices:
        product = torch.bmm(shrunk[:, :, part.low : part.high], part.b)
        y[:, :, part.start : part.stop].add_(product, alpha=scale)


def matrix(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """One slot's ``[rows, columns]`` of ``[slots, 1, rows, columns]``."""
    return stacked[slot].view(stacked.shape[-2:])


def rows_by_slot(row_slots: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Each slot present with the indices of its rows, for cases too rare to plan."""
    for slot in row_slots.unique().tolist():
        if slot >= 0:
            yield slot, (row_slots == slot).nonzero().flatten()
