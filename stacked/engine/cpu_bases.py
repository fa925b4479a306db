"""What some bases need on a CPU: a certain dtype, adapters that spare experts, or a GPU instead.

vLLM has these rules inside kernels, where they end an engine that has already started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stacked.core import Adapter, short
from stacked.errors import AdapterUnsupported, GroupImpossible
from stacked.store.files import WEIGHTS_FILE
from stacked.store.pairs import pair_up
from stacked.store.tensors import read_header

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


def is_expert(module: str) -> bool:
    """Whether a module belongs to one routed expert or to all; shared experts do not count."""
    return "experts" in module.split(".")


def check_no_experts(adapters: Sequence[Adapter], modules: Iterable[str]) -> None:
    """Refuse adapters of experts among those of a base. Raises AdapterUnsupported.

    Only adapters with a module named like an expert's are opened.
    """
    names = {module.rpartition(".")[2] for module in modules if is_expert(module)}
    for adapter in adapters:
        if names.isdisjoint(adapter.target_modules):
            continue
        try:
            found = [*filter(is_expert, pair_up(read_header(adapter.path / WEIGHTS_FILE)))]
        except OSError:  # a start checks all files, and reports missing ones
            continue
        if found:
            raise AdapterUnsupported(
                f"adapter {short(adapter.digest)} adapts experts ({len(found)} modules, the first "
                f"is {found[0]}), and vLLM's kernels for experts on a CPU support none; serve "
                "it on a GPU, or train it on the other layers"
            )
