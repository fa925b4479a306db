"""vLLM's layers on a CPU: rotary embeddings in every layout, single rows, mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from stacked.engine.cpu_layers import MENDED, flat_heads, mend, of_every_layer
from tests.engine.releases import RELEASE, since

WITH_CONVOLUTION = since(0, 31, "the convolution has a function of its own")

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
    got = flat_heads(type(rope).forward_cpu)(rope, positions, query, key)
    assert got[0] is query  # in place, as the kernel does
    assert got[1] is key
    for ours, theirs in zip(got, wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs.view(ours.shape), atol=1e-5, rtol=1e-5)


def test_the_kernel_itself_turns_heads_wrongly(layer: Callable[[bool], Any]) -> None:
    """When this fails, `flat_heads` has become superfluous."""
    import torch

    rope, positions = layer(True), torch.arange(7, 7 + TOKENS)
    query, key = _heads(torch)
    wanted = rope.forward_native(positions, query.clone(), key.clone())
    kernel = getattr(type(rope).forward_cpu, "__wrapped__", type(rope).forward_cpu)
    turned, _ = kernel(rope, positions, query, key)
    assert not torch.allclose(turned, wanted[0], atol=0.1)


@WITH_CONVOLUTION
def test_single_rows_of_a_wider_tensor_are_moved_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    given: list[Any] = []
    (place,) = (each for each in MENDED if "conv1d" in each)

    def kernel(*, x: Any, weight: Any) -> Any:
        given.append(x)
        return weight

    monkeypatch.setattr(gdn_attention, "_causal_conv1d_fwd_cpu", kernel)
    mend([place])
    mend([place])
    wide = torch.arange(48.0).view(2, 24)
    one, two = wide[:1, :8], wide[:, :8].contiguous()
    assert one.contiguous().stride() == (24, 1)  # what vLLM takes for enough
    for rows in (one, two):
        assert gdn_attention._causal_conv1d_fwd_cpu(x=rows.t(), weight="w") == "w"
    assert [x.stride() for x in given] == [(1, 8), (1, 8)]
    assert torch.equal(given[0], one.t())
    assert given[1].data_ptr() == two.data_ptr()


@WITH_CONVOLUTION
def test_the_kernel_itself_refuses_a_single_row_of_a_wider_tensor() -> None:
    """When this fails, `contiguous_rows` has become superfluous."""
    import torch
    from vllm import _custom_ops as ops

    wide = torch.zeros(1, 128, dtype=torch.bfloat16)
    row = wide[:, :64].t()
    arguments: dict[str, Any] = {
        "weight": torch.zeros(64, 4, dtype=torch.bfloat16),
        "bias": None,
        "conv_states": torch.zeros(2, 64, 3, dtype=torch.bfloat16),
        "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        "cache_indices": torch.tensor([1], dtype=torch.int32),
        "has_initial_state": torch.tensor([False]),
        "silu_activation": True,
        "is_weight_packed" if RELEASE >= (0, 32) else "is_vnni": True,
    }
    with pytest.raises(RuntimeError, match="transposed"):
        ops.causal_conv1d_fwd_cpu(x=row, **arguments)


def test_new_blocks_are_zeroed_in_every_layer() -> None:
    import torch

    bad = float("nan")
    plain, halves = torch.full((4, 2, 3), bad), torch.full((8, 3), bad)  # two rows to a block
    caches = (plain, halves, torch.tensor([]), [torch.full((4,), bad)])
    layers = {str(at): SimpleNamespace(kv_cache=cache) for at, cache in enumerate(caches)}
    runner = SimpleNamespace(
        kv_cache_config=SimpleNamespace(num_blocks=4),
        compilation_config=SimpleNamespace(static_forward_context=layers | {"x": object()}),
    )
    of_every_layer(lambda: None)(runner, [1, 3])
    for cache in (plain, halves):
        blocks = cache.view(4, -1)
        assert not blocks[[1, 3]].any()
        assert blocks[[0, 2]].isnan().all()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does, for one test."""
    from vllm.lora import layers
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

    for owner, name in (
        (FusedMoEConfig, "__post_init__"),
        (layers.FusedMoEWithLoRA, "can_replace_layer"),
        (layers.FusedMoE3DWithLoRA, "can_replace_layer"),
    ):
        monkeypatch.setattr(owner, name, owner.__dict__[name])  # put back afterwards
    for _ in range(2):
        mend([place for place in MENDED if "fused_moe" in place])


def config() -> Any:
    import torch
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    return config.FusedMoEConfig(
        num_experts=4,
        experts_per_token=2,
        hidden_dim=128,
        intermediate_size=64,
        num_local_experts=4,
        num_logical_experts=4,
        activation=MoEActivation.SILU,
        device="cpu",
        routing_method=config.RoutingMethodType.Renormalize,
        moe_parallel_config=config.FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.float32,
        is_lora_enabled=True,
    )


def chosen() -> str:
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import (
        select_unquantized_moe_backend,
    )

    backend, _ = select_unquantized_moe_backend(config())
    return str(backend.name)


def test_experts_are_computed_by_the_kernel_for_cpus(alone: None) -> None:
    assert chosen() == "CPU"


@since(0, 28, "its LoRA has kernels for experts")
def test_vllm_itself_takes_a_kernel_that_cpus_do_not_have() -> None:
    """When this fails, `without_lora` has become superfluous."""
    assert chosen() == "TRITON"


def test_no_lora_layer_replaces_experts(alone: None) -> None:
    from vllm.lora.utils import from_layer
    from vllm.model_executor.layers.fused_moe import MoERunner

    experts = MoERunner.__new__(MoERunner)
    for packed in (["w13"], ["w1", "w3"]):
        lora = SimpleNamespace(fully_sharded_loras=False)
        assert from_layer(experts, 1, lora, packed, None) is experts
