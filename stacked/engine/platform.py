"""The vLLM platform plugin that puts this package's CPU LoRA kernel in the place of vLLM's.

It owns the choice alone: the kernel is in ``cpu_lora``, the platform class in ``cpu_platform``. It
must not import them or torch, because vLLM calls the plugin in every process it starts.

Relies on (vLLM 0.26 to 0.32): the entry-point group ``vllm.platform_plugins``, whose function
returns the qualified name of a platform class or None and goes before vLLM's own platforms; and
``vllm.platforms.cpu_platform_plugin``, which says whether vLLM would run on the CPU.
"""

from __future__ import annotations

import os

SWITCH = "STACKED_CPU_LORA"
PLATFORM = "stacked.engine.cpu_platform.StackedCpuPlatform"
KERNEL = "stacked.engine.cpu_lora.GroupedLora"


def enabled() -> bool:
    """False where ``STACKED_CPU_LORA=0`` asks for vLLM's own kernel, to compare with."""
    return os.environ.get(SWITCH, "1") != "0"


def cpu_platform_plugin() -> str | None:
    """The platform for vLLM to use, or None where vLLM would not run on the CPU."""
    if not enabled():
        return None
    from vllm.platforms import cpu_platform_plugin as cpu_platform_of_vllm  # not before it is asked

    return PLATFORM if cpu_platform_of_vllm() else None


def base_is_protected() -> bool:
    """Whether base requests are safe beside adapters in the platform that vLLM settled on.

    False on a CPU where vLLM's kernel is in use: the plugin was switched off, left out of
    ``VLLM_PLUGINS``, or passed over because ``VLLM_TARGET_DEVICE=cpu`` is set.
    """
    from vllm.platforms import current_platform  # settles the platform, so never at import time

    return not current_platform.is_cpu() or current_platform.get_punica_wrapper() == KERNEL
