"""Mixtures of experts on a CPU: vLLM's own kernel computes them, and other layers have adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from stacked.engine.cpu_experts import leave_experts_alone
from tests.engine.releases import since


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
    leave_experts_alone()
    leave_experts_alone()


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
    """When this fails, `cpu_experts` has become superfluous."""
    assert chosen() == "TRITON"


def test_no_lora_layer_replaces_experts(alone: None) -> None:
    from vllm.lora.utils import from_layer
    from vllm.model_executor.layers.fused_moe import MoERunner

    experts = MoERunner.__new__(MoERunner)
    for packed in (["w13"], ["w1", "w3"]):
        lora = SimpleNamespace(fully_sharded_loras=False)
        assert from_layer(experts, 1, lora, packed, None) is experts
