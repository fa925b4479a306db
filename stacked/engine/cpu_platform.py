"""vLLM's CPU platform with one answer changed: which class multiplies LoRA weights.

It must not import ``cpu_lora``: vLLM imports this module while it is still settling its platform,
and the kernel's base class asks for the settled one.
"""

from __future__ import annotations

from vllm.platforms import cpu_platform_plugin
from vllm.utils.import_utils import resolve_obj_by_qualname

from stacked.engine.platform import KERNEL

# CpuPlatform, or the subclass of it that vLLM picks on this processor.
_PlatformOfVllm: type = resolve_obj_by_qualname(
    cpu_platform_plugin() or "vllm.platforms.cpu.CpuPlatform"
)


class StackedCpuPlatform(_PlatformOfVllm):  # type: ignore[misc]
    """Enum, device and operators stay vLLM's, so ``is_cpu()`` and every dispatch see no change."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return KERNEL
