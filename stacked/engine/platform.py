"""The vLLM plugins that replace vLLM's CPU LoRA kernel, and some layers, by this package's.

The kernel is in ``cpu_lora``, the platform class in ``cpu_platform``. This module must not import
them or torch, because vLLM calls the plugin in every process it starts.

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
    """False if ``STACKED_CPU_LORA=0`` selects vLLM's own kernel, for comparison."""
    return os.environ.get(SWITCH, "1") != "0"


def cpu_platform_plugin() -> str | None:
    """The platform for vLLM to use, or None if vLLM would not run on the CPU."""
    if not enabled():
        return None
    from vllm.platforms import cpu_platform_plugin as cpu_platform_of_vllm  # only when called

    return PLATFORM if cpu_platform_of_vllm() else None


def base_is_protected() -> bool:
    """Whether base requests are safe in a batch with adapters on the platform that vLLM chose.

    False on a CPU with vLLM's kernel from before 0.33: the plugin was switched off, left out of
    ``VLLM_PLUGINS``, or ignored because ``VLLM_TARGET_DEVICE=cpu`` is set.
    """
    from vllm.platforms import current_platform  # chooses the platform, so never at import time

    if not current_platform.is_cpu() or current_platform.get_punica_wrapper() == KERNEL:
        return True
    return require_build().release >= (0, 33)


def prepare_layers() -> None:
    """Have the platform change vLLM's layers, if it does, before a model is built."""
    from vllm.platforms import current_platform

    prepare = getattr(current_platform, "register_triton_kernel_overrides", None)
    if prepare is not None:  # vLLM's own have it from 0.31 on
        prepare()


def worker_plugin() -> None:
    """Called by vLLM in each of its processes: prepare its scheduler, and its layers before 0.31.

    Since then workers prepare their layers themselves.
    """
    if multiprocessing.parent_process() is None:
        return
    from vllm.platforms import current_platform
    from vllm.platforms.interface import Platform

    prepare_scheduler = getattr(current_platform, "prepare_scheduler", None)
    if prepare_scheduler is not None:  # only ours has it
        prepare_scheduler()
    if not hasattr(Platform, "register_triton_kernel_overrides"):
        prepare_layers()
