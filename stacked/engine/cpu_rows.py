"""On a CPU, prompts of one token, and last parts of one, for bases with gated delta nets.

For the workers of ``cpu_platform``. vLLM's convolution for a CPU needs contiguous rows. Its layer
calls ``contiguous()``, which leaves a single row of a wider tensor unchanged, and the kernel then
ends the engine: at a prompt of one token, or of one more than a step reads.

Relies on: the layer calls the kernel by the name that is replaced here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


def lay_out_single_rows() -> None:
    """Have this process give the kernel contiguous single rows. Idempotent."""
    with contextlib.suppress(ImportError, AttributeError):  # an older vLLM has no such kernel
        _replace()


def _replace() -> None:
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    gdn_attention._causal_conv1d_fwd_cpu = _close(gdn_attention._causal_conv1d_fwd_cpu)


def _close(convolve: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def convolved(*, x: Any, **rest: Any) -> Any:
        """`x` is ``[channels, rows]``, transposed from rows of channels."""
        if x.shape[1] == 1:
            x = x.t().clone(memory_format=torch.contiguous_format).t()
        return convolve(x=x, **rest)

    return convolved
