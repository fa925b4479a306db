"""The vLLM plugins that put this package's CPU LoRA kernel, and layers, in the place of vLLM's.

It owns the choice alone: the kernel is in ``cpu_lora``, the platform class in ``cpu_platform``. It
must not import them or torch, because vLLM calls the plugin in every process it starts.

Relies on: the entry-point group ``vllm.platform_plugins``, whose function
returns the qualified name of a platform class or None and goes before vLLM's own platforms; and
``vllm.platforms.cpu_platform_plugin``, which says whether vLLM would run on the CPU.
"""

from __future__ import annotations

import multiprocessing
import os

from stacked.engine.support import require_build

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
    """Whether base requests are safe in a batch with adapters in the platform that vLLM settled on.

    False on a CPU where vLLM's kernel is in use and from before 0.33: the plugin was switched off,
    left out of ``VLLM_PLUGINS``, or passed over because ``VLLM_TARGET_DEVICE=cpu`` is set.
    """
    from vllm.platforms import current_platform  # settles the platform, so never at import time

    if not current_platform.is_cpu() or current_platform.get_punica_wrapper() == KERNEL:
        return True
    return require_build().release >= (0, 33)


def prepare_layers() -> None:
    """Have the platform change vLLM's layers, where it does, before a model is built of them."""
    from vllm.platforms import current_platform

    prepare = getattr(current_platform, "register_triton_kernel_overrides", None)
    if prepare is not None:  # vLLM's own have it from 0.31 on
        prepare()


def worker_plugin() -> None:
    """Called by vLLM in each of its processes: do what its workers do by themselves since 0.31."""
    from vllm.platforms.interface import Platform

    there = hasattr(Platform, "register_triton_kernel_overrides")
    if not there and multiprocessing.parent_process() is not None:
        prepare_layers()
