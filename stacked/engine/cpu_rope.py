"""On a CPU, rotary embeddings of queries and keys with a separate axis for heads.

For the workers of ``cpu_platform``. vLLM's kernel for a CPU is right for ``[tokens, heads * size]``
and rotates the wrong values, without an error, for ``[tokens, heads, size]``: with it, bases with
latent attention (DeepSeek, GLM 4 MoE Lite) and LFM2 answer differently from transformers.

Relies on: layers call ``RotaryEmbedding.forward_cpu``, which writes in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def flatten_heads() -> None:
    """Have this process give the kernel rows of all heads. Idempotent."""
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    RotaryEmbedding.forward_cpu = _flat(RotaryEmbedding.forward_cpu)


def _flat(rotate: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(rotate)
    def forward_cpu(layer: Any, positions: Any, query: Any, key: Any = None) -> tuple[Any, Any]:
        given = (query, key)
        if all(each is None or each.dim() == 2 for each in given):
            return rotate(layer, positions, query, key)  # type: ignore[no-any-return]
        rows = [None if each is None else each.reshape(positions.numel(), -1) for each in given]
        for each, turned in zip(given, rotate(layer, positions, *rows), strict=True):
            # A view of the argument was rotated in place.
            if each is not None and each.data_ptr() != turned.data_ptr():
                each.copy_(turned.view(each.shape))
        return given

    return forward_cpu
