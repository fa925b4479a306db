"""Rotary embeddings on a CPU, in every layout that vLLM's models give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

from stacked.engine.cpu_rope import _flat

TOKENS, HEADS, SIZE = 6, 4, 32


def _rows(torch: Any) -> tuple[Any, Any]:
    wide = torch.randn(TOKENS, 3 * HEADS * SIZE)
    return wide[:, : HEADS * SIZE], wide[:, HEADS * SIZE : 2 * HEADS * SIZE]


def _heads(torch: Any) -> tuple[Any, Any]:
    return torch.randn(TOKENS, HEADS, SIZE), torch.randn(TOKENS, 2, SIZE)


def _ends_of_heads(torch: Any) -> tuple[Any, Any]:
    """Latent attention's: the last part of each query, and one key."""
    query, key = torch.randn(TOKENS, HEADS, SIZE + 16), torch.randn(TOKENS, SIZE + 8)
    return query[..., 16:], key[:, 8:].unsqueeze(1)


def _query_alone(torch: Any) -> tuple[Any, Any]:
    return torch.randn(TOKENS, HEADS, SIZE), None


@pytest.fixture
def layer() -> Callable[[bool], Any]:
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the kernel of vLLM's build for a CPU")
    current_platform.import_kernels()
    torch.manual_seed(0)

    def make(neox: bool) -> Any:
        with set_current_vllm_config(VllmConfig()):
            return RotaryEmbedding(SIZE, SIZE, 128, 10000.0, neox, torch.float32)

    return make


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("given", [_rows, _heads, _ends_of_heads, _query_alone])
def test_queries_and_keys_are_turned_as_by_the_formula(
    layer: Callable[[bool], Any], given: Callable[[Any], tuple[Any, Any]], neox: bool
) -> None:
    import torch

    rope, positions = layer(neox), torch.arange(7, 7 + TOKENS)
    query, key = given(torch)
    copies = query.clone(), None if key is None else key.clone()
    wanted = rope.forward_native(positions, *copies)
    got = _flat(type(rope).forward_cpu)(rope, positions, query, key)
    assert got[0] is query  # in place, as the kernel does
    assert got[1] is key
    for ours, theirs in zip(got, wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs.view(ours.shape), atol=1e-5, rtol=1e-5)


def test_the_kernel_itself_turns_heads_wrongly(layer: Callable[[bool], Any]) -> None:
    """When this fails, `cpu_rope` has become superfluous."""
    import torch

    rope, positions = layer(True), torch.arange(7, 7 + TOKENS)
    query, key = _heads(torch)
    wanted = rope.forward_native(positions, query.clone(), key.clone())
    kernel = getattr(type(rope).forward_cpu, "__wrapped__", type(rope).forward_cpu)
    turned, _ = kernel(rope, positions, query, key)
    assert not torch.allclose(turned, wanted[0], atol=0.1)
