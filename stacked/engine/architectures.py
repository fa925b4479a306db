"""What some architectures need on a CPU: a certain dtype, or a GPU instead.

vLLM has these rules inside kernels, where they end an engine that has already started.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacked.errors import GroupImpossible

# Fields of a config.json that only bases with a part of this kind have: the dtype in which vLLM's
# kernel for a CPU computes it, and what the part is called (vllm/model_executor/layers/mamba/ops/
# cpu/gdn_attention.py, 0.32).
_DTYPES = {"linear_conv_kernel_dim": ("bfloat16", "gated delta nets")}

# Architectures with a layer whose kernels vLLM's builds for a CPU lack: Triton's (vllm/
# model_executor/layers/mamba/gdn/olmo_gdn_linear_attn.py, 0.32) and the scan of Mamba 1
# (`selective_scan_fwd` of vllm/_custom_ops.py).
_GPU_ALONE = frozenset({"OlmoHybridForCausalLM", "JambaForCausalLM"})


def cpu_dtype(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The only dtype that a base can have on a CPU, and which part requires it; None: any.

    Raises GroupImpossible where vLLM has no kernels for it on a CPU at all.
    """
    for architecture in config.get("architectures") or ():
        if architecture in _GPU_ALONE:
            raise GroupImpossible(
                f"the base's architecture, {architecture}, has layers that vLLM computes only on "
                "GPUs; serve it there, or choose another base"
            )
    return next((found for name, found in _DTYPES.items() if config.get(name)), None)
