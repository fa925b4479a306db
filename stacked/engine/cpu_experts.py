"""On a CPU, vLLM's LoRA leaves the experts of a mixture alone, so that other layers can have it.

It owns that one decision, for the workers of ``cpu_platform``; `make_plan` refuses adapters of
experts.

Where LoRA is on, vLLM computes experts by Triton's kernel, whether or not an adapter is on them,
and no build for a CPU has that. Its kernels for a CPU take no LoRA.

Relies on: ``FusedMoEConfig.is_lora_enabled`` is what the kernel is chosen by,
and a layer that no LoRA class can replace stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def leave_experts_alone() -> None:
    """Have this process build experts as without LoRA. Calling twice does no harm."""
    from vllm.lora.layers import FusedMoE3DWithLoRA, FusedMoEWithLoRA
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

    for wrapper in (FusedMoEWithLoRA, FusedMoE3DWithLoRA):
        wrapper.can_replace_layer = _never
    FusedMoEConfig.__post_init__ = _without_lora(FusedMoEConfig.__post_init__)


def _never(**layer: Any) -> bool:
    return False


def _without_lora(complete: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(complete)
    def completed(config: Any) -> None:
        config.is_lora_enabled = False
        complete(config)

    return completed
