"""vLLM's CPU platform with two answers changed: which class multiplies LoRA weights, and whether
the engine's process may compute by itself.

It must not import ``cpu_lora``: vLLM imports this module while it is still choosing its platform,
and the kernel's base class needs the chosen one.
"""

from __future__ import annotations

import os
from typing import Any

from vllm.platforms import cpu_platform_plugin
from vllm.utils.import_utils import resolve_obj_by_qualname

from stacked.engine.cpu_layers import mend, zero_new_blocks
from stacked.engine.pieces import read_in_pieces
from stacked.engine.platform import KERNEL

# CpuPlatform, or the subclass that vLLM chooses on this processor.
_PlatformOfVllm: type = resolve_obj_by_qualname(
    cpu_platform_plugin() or "vllm.platforms.cpu.CpuPlatform"
)


class StackedCpuPlatform(_PlatformOfVllm):  # type: ignore[misc]
    """Enum, device and operators stay vLLM's, so ``is_cpu()`` and every dispatch see no change."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return KERNEL

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        """Called in each worker before it builds the model, see `platform.worker_plugin`."""
        if hasattr(_PlatformOfVllm, "register_triton_kernel_overrides"):
            super().register_triton_kernel_overrides()
        mend()
        cls.prepare_scheduler()

    @classmethod
    def prepare_scheduler(cls) -> None:
        """For a scheduler in a worker's process or in its own, see `platform.worker_plugin`."""
        zero_new_blocks()
        read_in_pieces()

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """As vLLM's, but an engine that is configured to be one process stays one.

        vLLM would start a worker anyway, because the worker's OpenMP reads its cores when it is
        loaded. Here `creating.prepare` sets them for the engine's process instead.
        """
        parallel = vllm_config.parallel_config
        one = parallel.distributed_executor_backend == "uni" and "OMP_NUM_THREADS" in os.environ
        super().check_and_update_config(vllm_config)
        if one:
            parallel.distributed_executor_backend = "uni"
