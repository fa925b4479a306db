"""Single rows on their way to the convolution for a CPU: close together, and nothing else new."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from stacked.engine.cpu_rows import lay_out_single_rows
from tests.engine.releases import RELEASE, since

pytestmark = since(0, 31, "the convolution has a function of its own")


def test_single_rows_of_a_wider_tensor_are_moved_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    given: list[Any] = []

    def kernel(*, x: Any, weight: Any) -> Any:
        given.append(x)
        return weight

    monkeypatch.setattr(gdn_attention, "_causal_conv1d_fwd_cpu", kernel)
    lay_out_single_rows()
    lay_out_single_rows()
    wide = torch.arange(48.0).view(2, 24)
    one, two = wide[:1, :8], wide[:, :8].contiguous()
    assert one.contiguous().stride() == (24, 1)  # what vLLM takes for enough
    for rows in (one, two):
        assert gdn_attention._causal_conv1d_fwd_cpu(x=rows.t(), weight="w") == "w"
    assert [x.stride() for x in given] == [(1, 8), (1, 8)]
    assert torch.equal(given[0], one.t())
    assert given[1].data_ptr() == two.data_ptr()


def test_the_kernel_itself_refuses_a_single_row_of_a_wider_tensor() -> None:
    """When this fails, `cpu_rows` has become superfluous."""
    import torch
    from vllm import _custom_ops as ops

    wide = torch.zeros(1, 128, dtype=torch.bfloat16)
    row = wide[:, :64].t()
    arguments: dict[str, Any] = {
        "weight": torch.zeros(64, 4, dtype=torch.bfloat16),
        "bias": None,
        "conv_states": torch.zeros(2, 64, 3, dtype=torch.bfloat16),
        "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        "cache_indices": torch.tensor([1], dtype=torch.int32),
        "has_initial_state": torch.tensor([False]),
        "silu_activation": True,
        "is_weight_packed" if RELEASE >= (0, 32) else "is_vnni": True,
    }
    with pytest.raises(RuntimeError, match="transposed"):
        ops.causal_conv1d_fwd_cpu(x=row, **arguments)
