"""On a CPU, experts of a mixture are built without LoRA, so that other layers can have it.

For the workers of ``cpu_platform``; `make_plan` refuses adapters of experts. With LoRA on, vLLM
computes experts with Triton's kernel, whether or not an adapter targets them, and no CPU build has
it. Its kernels for a CPU do not support LoRA.

Relies on: ``FusedMoEConfig.is_lora_enabled`` decides which kernel is chosen,
and a layer that no LoRA class can replace is left unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def leave_experts_alone() -> None:
    """Have this process build experts as without LoRA. Idempotent."""
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
