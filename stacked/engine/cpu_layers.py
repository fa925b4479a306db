"""vLLM's layers on a CPU, mended where they call kernels with what those cannot compute.

For the workers of ``cpu_platform``.

Relies on: layers look up what `MENDED` lists where it stands there; ``RotaryEmbedding.forward_cpu``
writes in place; ``FusedMoEConfig.is_lora_enabled`` decides which kernel is chosen, and a layer that
no LoRA class can replace is left unchanged; ``KVCacheConfig.needs_kv_cache_zeroing`` decides
whether the scheduler lists new blocks for ``_zero_block_ids``, and a layer's ``kv_cache`` has the
blocks first.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from stacked.engine.support import require_build

Call = Callable[..., Any]
Wrapper = Callable[[Call], Call]
MENDED: dict[str, tuple[Wrapper, tuple[int, int]]] = {}
"""What is replaced, by what, and since which version of vLLM it exists."""
_RUNNER = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"


def _mends(place: str, since: tuple[int, int] = (0, 0)) -> Callable[[Wrapper], Wrapper]:
    def listed(wrapper: Wrapper) -> Wrapper:
        MENDED[place] = wrapper, since
        return wrapper

    return listed


@_mends("vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cpu")
def flat_heads(rotate: Call) -> Call:
    """Rotary embeddings of queries and keys with a separate axis for heads, as rows of all heads.

    vLLM's kernel is right for ``[tokens, heads * size]`` and rotates the wrong values, without an
    error, for ``[tokens, heads, size]``: with it, bases with latent attention (DeepSeek, GLM 4 MoE
    Lite) and LFM2 answer differently from transformers.
    """

    def forward_cpu(layer: Any, positions: Any, query: Any, key: Any = None) -> Any:
        given = (query, key)
        if all(each is None or each.dim() == 2 for each in given):
            return rotate(layer, positions, query, key)
        rows = [None if each is None else each.reshape(positions.numel(), -1) for each in given]
        for each, turned in zip(given, rotate(layer, positions, *rows), strict=True):
            # A view of the argument was rotated in place.
            if each is not None and each.data_ptr() != turned.data_ptr():
                each.copy_(turned.view(each.shape))
        return given

    return forward_cpu


@_mends("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention:_causal_conv1d_fwd_cpu", (0, 31))
def contiguous_rows(convolve: Call) -> Call:
    """The convolution of gated delta nets, with a contiguous copy of a single row.

    The layer calls ``contiguous()``, which leaves a single row of a wider tensor unchanged, and the
    kernel then ends the engine: at a prompt of one token, or of one more than a step reads.
    """
    import torch

    def convolved(*, x: Any, **rest: Any) -> Any:
        """`x` is ``[channels, rows]``, transposed from rows of channels."""
        if x.shape[1] == 1:
            x = x.t().clone(memory_format=torch.contiguous_format).t()
        return convolve(x=x, **rest)

    return convolved


@_mends("vllm.model_executor.layers.fused_moe.config:FusedMoEConfig.__post_init__")
def without_lora(complete: Call) -> Call:
    """The configuration of experts as without LoRA, so that other layers can have it.

    With LoRA on, vLLM computes experts with Triton's kernel, whether or not an adapter targets
    them, and no CPU build has it. Its kernels for a CPU do not support LoRA: `make_plan` refuses
    adapters of experts.
    """

    def completed(config: Any) -> None:
        config.is_lora_enabled = False
        complete(config)

    return completed


@_mends("vllm.lora.layers.fused_moe:FusedMoEWithLoRA.can_replace_layer")
@_mends("vllm.lora.layers.fused_moe:FusedMoE3DWithLoRA.can_replace_layer")
def never(can_replace: Call) -> Call:
    """No LoRA layer replaces experts, see `without_lora`."""
    return lambda **layer: False


@_mends(f"{_RUNNER}._zero_block_ids")
def of_every_layer(zero: Call) -> Call:
    """Zeros in new blocks of every layer; vLLM's leaves out layers with a sliding window."""
    import torch

    def _zero_block_ids(runner: Any, block_ids: list[int]) -> None:
        count = runner.kv_cache_config.num_blocks
        for layer in runner.compilation_config.static_forward_context.values():
            cache = getattr(layer, "kv_cache", None)
            if isinstance(cache, torch.Tensor) and cache.numel():
                cache.unflatten(0, (count, -1))[block_ids] = 0

    return _zero_block_ids


@_mends(f"{_RUNNER}._init_kv_zero_meta")
def nothing(prepare: Call) -> Call:
    """Nothing: this is for a kernel of a GPU."""
    return lambda runner: None


def zero_new_blocks() -> None:
    """Have this process's scheduler, if it has one, list blocks to be zeroed before they are used.

    vLLM does so for some models only. Its attention on a CPU multiplies values beyond the end of a
    sequence by zero, and where the block's last request left values that are not numbers, every
    token of the next is wrong: an adapter with huge weights would reach requests of others.
    """
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = True


def mend(places: Iterable[str] = MENDED) -> None:
    """Replace these in this process. Idempotent."""
    release = require_build().release
    for place in places:
        wrapper, since = MENDED[place]
        if release >= since:
            owner, name = place.replace(":", ".").rsplit(".", 1)
            holder = pkgutil.resolve_name(owner)
            theirs = getattr(holder, name)
            setattr(holder, name, wraps(theirs)(wrapper(theirs)))
