"""The CPU LoRA kernel against a row-by-row reference: every mix of rows, slots, slices and dtypes.

It must not start an engine; that the engine uses the kernel is shown in ``test_base_untouched``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm.lora.layers import LoRAMapping  # noqa: E402

from stacked.engine import cpu_lora  # noqa: E402
from stacked.engine.cpu_lora import GroupedLora, add_product  # noqa: E402
from stacked.engine.row_plan import plan_rows  # noqa: E402

RANK, WIDTH, VOCAB = 8, 24, 40
DTYPES = [torch.float32, torch.bfloat16]
LAYERS = {"o": (20,), "gate_up": (32, 32), "qkv": (24, 8, 8)}
# -1 is a base row; slots run from 0.
MIXES = {
    "base only": [-1, -1, -1],
    "one adapter": [0, 0, 0, 0],
    "last slot only": [3, 3],
    "base first": [-1, 1, 1],
    "base last": [2, 2, -1],
    "decode, all slots": [0, 1, 2, 3],
    "decode, slots scattered": [3, -1, 0, 2, -1, 1],
    "decode, interleaved": [0, 1] * 9 + [-1, 0] * 3,
    "prefill and decode": [1] * 40 + [-1] * 25 + [0] + [1] + [-1] + [2] * 33 + [0],
    "one row": [2],
    "one base row": [-1],
}


def wrapper(slots: list[int], sampled: list[int] | None = None, lora_slots: int = 4) -> GroupedLora:
    """A wrapper told of this batch in vLLM's own way; adapter ids are slot + 10, 0 is the base."""
    kernel = GroupedLora(max(len(slots), 8), max_batches=256, device="cpu")
    ids = tuple(slot + 10 if slot >= 0 else 0 for slot in slots)
    picked = tuple(slot + 10 if slot >= 0 else 0 for slot in (sampled or slots))
    mapping = LoRAMapping(ids, picked, is_prefill=True)
    kernel.update_metadata(
        mapping, [slot + 10 for slot in range(lora_slots)], lora_slots + 1, VOCAB
    )
    return kernel


def stacks(
    widths: tuple[int, ...], dtype: Any, *, slots: int = 4, seed: int = 0
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Random slot tensors ``[slots, 1, rank, in]`` and ``[slots, 1, out, rank]`` for each slice."""
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(slots, 1, RANK, WIDTH, generator=generator).to(dtype) for _ in widths)
    b = tuple(torch.randn(slots, 1, out, RANK, generator=generator).to(dtype) for out in widths)
    return a, b


def reference(y: Any, x: Any, a: Any, b: Any, slots: list[int], scale: float = 1.0) -> Any:
    """Row by row, in float64, on a copy of ``y``."""
    out = y.double().clone()
    for row, slot in enumerate(slots):
        column = 0
        for a_all, b_all in zip(a, b, strict=True):
            width = b_all.shape[-2]
            if slot >= 0:
                shrunk = a_all[slot, 0].double() @ x[row].double()
                out[row, column : column + width] += scale * (b_all[slot, 0].double() @ shrunk)
            column += width
    return out


def assert_close(got: Any, want: Any) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 2e-2
    limit = tolerance * (want.abs().max().item() + 1)
    assert (got.double() - want).abs().max().item() <= limit


def base_rows_unchanged(before: Any, after: Any, slots: list[int]) -> bool:
    rows = [row for row, slot in enumerate(slots) if slot < 0]
    return torch.equal(before[rows], after[rows])


def random_batch(rows: int, out: int, dtype: Any, seed: int = 1) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator).to(dtype)
    return x, torch.randn(rows, out, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("widths", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("slots", MIXES.values(), ids=MIXES)
def test_linear_adds_each_rows_own_adapter(slots: list[int], widths: Any, dtype: Any) -> None:
    a, b = stacks(widths, dtype)
    x, y = random_batch(len(slots), sum(widths), dtype)
    before, want = y.clone(), reference(y, x, a, b, slots, 0.5)
    wrapper(slots).add_lora_linear(y, x, a, b, 0.5, widths)
    assert_close(y, want)
    assert base_rows_unchanged(before, y, slots)


@settings(max_examples=150)
@given(
    slots=st.lists(st.integers(-1, 7), min_size=1, max_size=80),
    widths=st.sampled_from(list(LAYERS.values())),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 5),
)
def test_linear_is_right_for_any_mix(slots: list[int], widths: Any, dtype: Any, seed: int) -> None:
    a, b = stacks(widths, dtype, slots=8, seed=seed)
    x, y = random_batch(len(slots), sum(widths), dtype, seed)
    before, want = y.clone(), reference(y, x, a, b, slots)
    again = y.clone()
    kernel = wrapper(slots, lora_slots=8)
    kernel.add_lora_linear(y, x, a, b, 1.0, widths)
    with pytest.MonkeyPatch.context() as patch:  # as large layers do, never reading idle slots
        patch.setattr(cpu_lora, "_BYTES_A_RUN", {})
        kernel.add_lora_linear(again, x, a, b, 1.0, widths)
    for each in (y, again):
        assert_close(each, want)
        assert base_rows_unchanged(before, each, slots)


@pytest.mark.parametrize(("width", "stacked"), [(WIDTH, True), (40_000, False)])
def test_idle_slots_are_read_in_small_layers_only(width: int, stacked: bool) -> None:
    slots = [0, 2, 2]
    a, b = stacks((width,), torch.float32)
    layer = cpu_lora.Layer(a, b, (width,))
    x, y = random_batch(3, width, torch.float32)
    want = reference(y, x, a, b, slots)
    add_product(y, x, layer, plan_rows(np.array(slots)), 1.0)
    assert_close(y, want)
    assert ((0, 1, 2) in layer._factors) is stacked


@settings(max_examples=200)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=120))
def test_a_plan_gives_every_row_its_slot(slots: list[int]) -> None:
    plan = plan_rows(np.array(slots))
    rows = np.arange(len(slots)) if plan.order is None else plan.order.numpy()
    by_row = np.repeat(plan.slots, plan.height or plan.sizes)
    kept = range(len(rows)) if plan.real is None else plan.real.tolist()
    told = {int(rows[place]): int(by_row[place]) for place in kept} if len(by_row) else {}
    assert [told.get(row, -1) for row in range(len(slots))] == slots
    assert plan.rows == len(slots)


def test_rows_are_moved_only_where_it_pays() -> None:
    in_place = plan_rows(np.array([0, 1, 2]))
    assert (in_place.height, in_place.order) == (1, None)
    assert plan_rows(np.array([0, 1] * 8)).height == 8
    assert plan_rows(np.array(([0] * 64 + [1] * 64) * 3)).order is None
    far_apart = plan_rows(np.array([0, 9]))
    assert (far_apart.height, far_apart.order) == (0, None)
    many_runs = plan_rows(np.array([0, 1, 0, 0, 7] * 8))
    assert many_runs.height == 0
    assert many_runs.order is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slots", MIXES.values(), ids=MIXES)
def test_embedding_adds_each_rows_own_adapter(slots: list[int], dtype: Any) -> None:
    _, (b,) = stacks((20,), dtype)
    _, y = random_batch(len(slots), 20, dtype)
    generator = torch.Generator().manual_seed(3)
    looked_up = torch.randn(len(slots), RANK, generator=generator).to(dtype)
    before, identity = y.clone(), torch.eye(RANK).expand(4, 1, RANK, RANK)
    want = reference(y, looked_up, (identity,), (b,), slots)
    wrapper(slots).add_lora_embedding(y, looked_up, b, add_input=True)
    assert_close(y, want)
    assert base_rows_unchanged(before, y, slots)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slots", MIXES.values(), ids=MIXES)
def test_logits_go_by_sampled_rows(slots: list[int], dtype: Any) -> None:
    (a,), (b,) = stacks((VOCAB,), dtype)
    x, y = random_batch(len(slots), VOCAB + 8, torch.float32)  # padded, and a head in float32
    x = x.to(dtype)
    before, want = y.clone(), reference(y, x, (a,), (b,), slots)
    prompt_tokens = [slot for slot in slots for _ in range(3)]
    wrapper(prompt_tokens, sampled=slots).add_lora_logits(y, x, a, b, 1.0)
    assert_close(y[:, :VOCAB].to(dtype), want[:, :VOCAB])
    assert torch.equal(y[:, VOCAB:], before[:, VOCAB:])
    assert base_rows_unchanged(before, y, slots)


@pytest.mark.parametrize(("first", "rows"), [(0, 4), (4, 3), (2, 5), (0, 9), (8, 1)])
def test_prompt_logits_go_by_the_tokens_they_are_a_window_on(first: int, rows: int) -> None:
    tokens = [-1, -1, -1, -1, 2, 2, 2, 0, 0]
    (a,), (b,) = stacks((VOCAB,), torch.float32)
    hidden, logits = random_batch(len(tokens), VOCAB, torch.float32)
    x, y = hidden[first : first + rows], logits[first : first + rows].clone()
    want = reference(y, x, (a,), (b,), tokens[first : first + rows])
    wrapper(tokens, sampled=[-1, 2, 0]).add_lora_logits(y, x, a, b, 1.0)
    assert_close(y, want)


def test_logits_of_unknown_rows_are_refused() -> None:
    (a,), (b,) = stacks((VOCAB,), torch.float32)
    x, y = random_batch(7, VOCAB, torch.float32)
    with pytest.raises(ValueError, match="7 rows of logits fit neither the 2 sampled rows"):
        wrapper([0, 0, 1], sampled=[0, 1]).add_lora_logits(y, x, a, b, 1.0)


def test_padding_rows_are_left_alone_and_missing_rows_refused() -> None:
    slots = [0, -1, 2]
    a, b = stacks((20,), torch.float32)
    x, y = random_batch(5, 20, torch.float32)
    before, want = y.clone(), reference(y, x, a, b, [*slots, -1, -1])
    wrapper(slots).add_lora_linear(y, x, a, b, 1.0, (20,))
    assert_close(y, want)
    assert torch.equal(y[3:], before[3:])
    with pytest.raises(ValueError, match="a batch of 3 rows met a layer with 2 rows"):
        wrapper(slots).add_lora_linear(y[:2], x[:2], a, b, 1.0, (20,))


def test_a_bad_adapter_reaches_nobody_else() -> None:
    slots = [-1, 1, 0, -1]
    a, b = stacks((20,), torch.float32)
    a[0][1], b[0][1] = torch.nan, torch.inf
    x, y = random_batch(4, 20, torch.float32)
    before = y.clone()
    wrapper(slots).add_lora_linear(y, x, a, b, 1.0, (20,))
    assert base_rows_unchanged(before, y, slots)
    assert y[2].isfinite().all()
    assert not y[1].isfinite().any()


@pytest.mark.parametrize("inference", [False, True])
def test_a_slot_written_again_is_seen_at_once(inference: bool) -> None:
    """The used rank is remembered: less, more, none and all of it must each replace the last."""
    slots = [0, -1, 1, 1]
    with torch.inference_mode(inference):
        a, b = stacks((24, 8, 8), torch.float32)
        fresh_a, fresh_b = stacks((24, 8, 8), torch.float32, seed=9)
    kernel = wrapper(slots)
    for rank in (RANK, 2, 0, 5, RANK):
        with torch.inference_mode():
            for all_a, all_b, new_a, new_b in zip(a, b, fresh_a, fresh_b, strict=True):
                all_a[1], all_b[1] = 0, 0  # as vLLM's set_lora does
                all_a[1, 0, :rank].copy_(new_a[1, 0, :rank])
                all_b[1, 0, :, :rank].copy_(new_b[1, 0, :, :rank])
            x, y = random_batch(4, 40, torch.float32)
            want = reference(y, x, a, b, slots)
            kernel.add_lora_linear(y, x, a, b, 1.0, (24, 8, 8))
        assert_close(y, want)


@pytest.mark.parametrize("unsaid", [(), (0,), (0, 1)])
def test_what_was_said_to_be_written_is_seen_and_what_was_not_too(unsaid: tuple[int, ...]) -> None:
    """Slot 1 is written as said; before and after it slots of `unsaid` without a word."""
    slots = [0, 1, 2, 1]
    a, b = stacks((24, 8, 8), torch.float32)
    for each in (*a, *b):
        each[:2] = 0  # nothing to multiply with, which is remembered
    fresh_a, fresh_b = stacks((24, 8, 8), torch.float32, seed=9)

    def write(slot: int) -> None:
        for old, new in zip((*a, *b), (*fresh_a, *fresh_b), strict=True):
            old[slot] = new[slot]

    kernel = wrapper(slots)
    for moment in ("none", "before", "after"):
        x, y = random_batch(4, 40, torch.float32)
        kernel.add_lora_linear(y, x, a, b, 1.0, (24, 8, 8))
        for slot in unsaid if moment == "before" else ():
            write(slot)
        with kernel.writing(b, 1):
            write(1)
        for slot in unsaid if moment == "after" else ():
            write(slot)
        want = reference(y, x, a, b, slots)
        kernel.add_lora_linear(y, x, a, b, 1.0, (24, 8, 8))
        assert_close(y, want)
        for each in (*a, *b):
            each[:2] = 0


def test_writing_one_slot_keeps_what_is_known_of_others() -> None:
    a, b = stacks((20,), torch.float32)
    layer = cpu_lora.Layer(a, b, (20,))
    other, stack = layer.factors((0,)), layer.factors((0, 1))
    with layer.writing(1):
        b[0][1] = 0
        a[0][1] = 0
    assert layer.factors((0,)) is other
    assert layer.factors((0, 1)) is not stack
    assert not layer.factors((1,)).slices


@pytest.mark.parametrize(("dtype", "whole"), [(torch.float32, False), (torch.bfloat16, True)])
def test_unused_ranks_are_left_out_where_that_is_faster(dtype: Any, whole: bool) -> None:
    slots, used = [0, 1, 2, 3], RANK // 2
    a, b = stacks((24, 8, 8), dtype)
    for one in a:
        one[:, :, used:] = 0
    a[1].zero_()
    layer = cpu_lora.Layer(a, b, (24, 8, 8))
    x, y = random_batch(4, 40, dtype)
    want = reference(y, x, a, b, slots)
    add_product(y, x, layer, plan_rows(np.array(slots)), 1.0)
    assert_close(y, want)
    stack, one_slot = layer.factors((0, 1, 2, 3)), layer.factors((0,))
    assert stack.a is not None
    assert one_slot.a is not None
    assert [part.start for part in stack.slices] == [0, 32]
    assert stack.a.shape[-1] == (3 * RANK if whole else 2 * RANK + used)
    assert stack.slices[0].b.shape[-2] == (RANK if whole else used)
    assert one_slot.a.shape[-1] == 2 * RANK + used


def test_an_untargeted_slice_is_left_alone() -> None:
    slots = [1, 0, -1]
    a, b = stacks((24, 8, 8), torch.float32)
    a[1][1], b[1][1] = 0, 0
    x, y = random_batch(3, 40, torch.float32)
    before, want = y.clone(), reference(y, x, a, b, slots)
    wrapper(slots).add_lora_linear(y, x, a, b, 1.0, (24, 8, 8))
    assert_close(y, want)
    assert torch.equal(y[0, 24:32], before[0, 24:32])


@pytest.mark.parametrize("slots", MIXES.values(), ids=MIXES)
def test_shrink_then_expand_is_the_linear_product(slots: list[int]) -> None:
    """The two halves, as layers sharded over several ranks call them."""
    widths, offset = (24, 8, 8), 5
    a, b = stacks(widths, torch.float32)
    x, y = random_batch(len(slots), 50, torch.float32)
    want = y.double().clone()
    want[:, offset : offset + 40] = reference(y[:, offset : offset + 40], x, a, b, slots, 0.5)
    buffers = torch.zeros(3, len(slots), RANK)
    kernel = wrapper(slots)
    kernel.add_shrink(buffers, x, a, 0.5)
    kernel.add_expand(y, buffers, b, widths, offset_start=offset, add_input=True)
    assert_close(y, want)


def test_a_whole_head_replaces_the_rows_of_its_slot() -> None:
    slots, enabled = [0, -1, 1, 2], torch.tensor([True, False, True, True])
    weight, bias = torch.randn(4, 1, 6, WIDTH), torch.randn(4, 6)
    x, y = random_batch(4, 6, torch.float32)
    want = y.double().clone()
    for row in (0, 3):
        want[row] = (weight[slots[row], 0] @ x[row] + bias[slots[row]]).double()
    wrapper(slots).apply_lora_full_linear(y, x, weight, bias, enabled)
    assert_close(y, want)


def test_experts_are_refused_by_name() -> None:
    kernel = wrapper([0])
    for method in (kernel.add_lora_fused_moe, kernel.add_lora_w13, kernel.add_lora_w2):
        with pytest.raises(NotImplementedError, match="mixture-of-experts layers is not supported"):
            method()
