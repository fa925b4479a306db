"""Tiny bases of other families than Llama's, on a CPU: adapters answer as transformers and PEFT do.

Each takes an engine of its own, so all of it is `long`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.engine.answers_run import run

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.long]

TOKENS = 12
PROMPTS = [[*range(300, 312)], [400, 401, 402, 330], [*range(350, 390)]]
SIZES = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": tiny.MAX_POSITIONS,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MAMBA = {
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 64,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def build(path: Path, name: str, **sizes: Any) -> Path:
    """A seeded base of transformers' class `{name}ForCausalLM`, with the tiny tokenizer."""
    import torch
    import transformers

    tiny.build_tokenizer(path)
    config_name = "Qwen3_5TextConfig" if name == "Qwen3_5" else f"{name}Config"
    config = getattr(transformers, config_name)(**SIZES | sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, f"{name}ForCausalLM")(config).float().eval().save_pretrained(path)
    return path


def answers(folder: Path, base: Path, **adapters: Any) -> dict[str, Any]:
    """What the engine and what PEFT say, adapters by name as target modules."""
    made = {
        name: tiny.build_adapter(folder / name, base, seed, target_modules=modules)
        for seed, (name, modules) in enumerate(adapters.items(), start=1)
    }
    seen = run(folder, base, made, PROMPTS, TOKENS)
    expected = {"base": tiny.greedy(base, PROMPTS, TOKENS)} | {
        name: tiny.greedy(base, PROMPTS, TOKENS, path) for name, path in made.items()
    }
    return {"seen": seen["answers"], "expected": expected, "plan": seen["plan"]}


@pytest.mark.parametrize(
    ("name", "sizes", "adapters"),
    [
        (
            "Qwen3Moe",
            EXPERTS | {"head_dim": 32},
            {"attention": tiny.ATTENTION, "head": ("lm_head",)},
        ),
        (
            "GraniteMoeHybrid",
            MAMBA
            | {
                "layer_types": ["mamba", "attention"],
                "mamba_n_heads": 8,
                "num_local_experts": 0,
                "num_experts_per_tok": 0,
                "shared_intermediate_size": 256,
            },
            {"attention": tiny.ATTENTION, "mamba": ("in_proj", "out_proj")},
        ),
        (
            "FalconH1",
            MAMBA | {"mamba_n_heads": 4, "mamba_d_ssm": 128, "head_dim": 32},
            {"attention": tiny.ATTENTION},
        ),
    ],
)
def test_every_answer_is_that_of_transformers_and_peft(
    name: str, sizes: dict[str, Any], adapters: dict[str, Any], tmp_path: Path
) -> None:
    base = build(tmp_path / "base", name, **sizes)
    found = answers(tmp_path, base, **adapters)
    assert found["seen"] == found["expected"]
    assert ("experts" in found["plan"]) == (name == "Qwen3Moe")
