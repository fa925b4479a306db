"""The architectures that are walked: for each the transformers class and a tiny config of it.

It must not know adapters, the engine or anything of the package under test, and it imports
transformers only inside functions, so that importing it costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import tiny

VOCABULARY = tiny.VOCAB_SIZE
HIDDEN = 128
HEADS = 4
HEAD = HIDDEN // HEADS
INNER = 256
POSITIONS = 256

TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
SIZE: dict[str, Any] = {
    **TOKENS,
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
HEADED = {**SIZE, "head_dim": HEAD}
TIED = {**SIZE, "tie_word_embeddings": True}
EXPERTS: dict[str, Any] = {
    **SIZE,
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
LATENT: dict[str, Any] = {  # latent attention, DeepSeek's
    **SIZE,
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 512,  # with the next the only size that vLLM serves on a CPU
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
}
OLD: dict[str, Any] = {  # GPT-2's names
    **TOKENS,
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": HEADS,
    "n_positions": POSITIONS,
    "n_inner": INNER,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "qwen3-next": {"dtype": "bfloat16"},  # of its linear attention vLLM has no other on a CPU
}
"""What an engine of an architecture must be told."""


PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl": {"image_processor_type": "Qwen2VLImageProcessor"},
    "paligemma": {"image_processor_type": "SiglipImageProcessor", "image_seq_length": 4},
    "idefics3": {"image_processor_type": "Idefics3ImageProcessor"},
}
"""What reads images for a base: vLLM asks for it even where there are none."""


def _without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


# Name: the class, and the values of its config.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", HEADED),
    "llama-tied": ("LlamaForCausalLM", {**HEADED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", TIED),
    "qwen3": ("Qwen3ForCausalLM", HEADED),
    "gemma": ("GemmaForCausalLM", HEADED),
    "gemma2": ("Gemma2ForCausalLM", HEADED),
    "gemma3": ("Gemma3ForCausalLM", HEADED),
    "mistral": ("MistralForCausalLM", {**HEADED, "sliding_window": None}),
    "phi3": ("Phi3ForCausalLM", SIZE),
    "opt": (
        "OPTForCausalLM",
        {
            **_without(SIZE, "intermediate_size", "num_key_value_heads"),
            "ffn_dim": INNER,
            "word_embed_proj_dim": HIDDEN,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", OLD),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "head_dim": HEAD}),
    "deepseek-v2": (
        "DeepseekV2ForCausalLM",
        {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 2},
    ),
    "bloom": (
        "BloomForCausalLM",
        {**TOKENS, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": HEADS},
    ),
    "falcon": (
        "FalconForCausalLM",
        {
            **_without(SIZE, "intermediate_size", "num_key_value_heads"),
            "ffn_hidden_size": 4 * HIDDEN,  # vLLM takes no other
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "alibi": False,
        },
    ),
    "gptj": ("GPTJForCausalLM", {**OLD, "rotary_dim": 16}),
    "stablelm": ("StableLmForCausalLM", SIZE),
    "cohere": ("CohereForCausalLM", SIZE),
    "cohere2": ("Cohere2ForCausalLM", {**HEADED, "sliding_window": 128}),
    "apertus": ("ApertusForCausalLM", SIZE),
    "ernie4.5": ("Ernie4_5ForCausalLM", HEADED),
    "exaone4": (
        "Exaone4ForCausalLM",
        {**HEADED, "sliding_window": 128, "sliding_window_pattern": 2},
    ),
    "glm4": ("Glm4ForCausalLM", {**HEADED, "partial_rotary_factor": 0.5}),
    "granite": ("GraniteForCausalLM", SIZE),
    "ministral3": ("Ministral3ForCausalLM", {**HEADED, "sliding_window": None}),
    "nemotron": ("NemotronForCausalLM", {**HEADED, "partial_rotary_factor": 0.5}),
    "hyperclovax": ("HyperCLOVAXForCausalLM", HEADED),
    "minicpm3": (
        "MiniCPM3ForCausalLM",
        {
            **_without(LATENT, "n_routed_experts", "n_shared_experts", "moe_intermediate_size"),
            "q_lora_rank": 64,
        },
    ),
    "gemma3-wrapper": (
        "Gemma3ForConditionalGeneration",
        {
            **TOKENS,
            "text_config": HEADED,
            "vision_config": TOWER,
            "mm_tokens_per_image": 4,
            "image_token_index": 500,
            "boi_token_index": 501,
            "eoi_token_index": 502,
        },
    ),
    "gemma4": (
        "Gemma4ForCausalLM",
        {
            **HEADED,
            "global_head_dim": HEAD,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    "mixtral": ("MixtralForCausalLM", {**SIZE, "num_local_experts": 4, "sliding_window": None}),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 64},
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        {**_without(EXPERTS, "moe_intermediate_size"), "norm_topk_prob": False},
    ),
    "granite-moe": (
        "GraniteMoeForCausalLM",
        {**SIZE, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granite-hybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            **SIZE,
            **MAMBA2,
            "num_local_experts": 0,
            "shared_intermediate_size": INNER,
            "layer_types": ["mamba", "attention"],
            "mamba_expand": 2,
            "position_embedding_type": "rope",
        },
    ),
    "glm4-moe": (
        "Glm4MoeForCausalLM",
        {
            **HEADED,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "partial_rotary_factor": 0.5,
        },
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            **HEADED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "ernie4.5-moe": (
        "Ernie4_5_MoeForCausalLM",
        {
            **SIZE,
            "moe_intermediate_size": 64,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        {**LATENT, "q_lora_rank": 64, "first_k_dense_replace": 1, "topk_method": "noaux_tc"},
    ),
    "glm4-moe-lite": (
        "Glm4MoeLiteForCausalLM",
        {
            **LATENT,
            "q_lora_rank": 64,
            "mlp_layer_types": ["dense", "sparse"],
            "first_k_dense_replace": 1,
        },
    ),
    "qwen3-next": (
        "Qwen3NextForCausalLM",
        {
            **EXPERTS,
            "head_dim": HEAD,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 64,  # vLLM's kernel for a CPU takes no 32
            "linear_value_head_dim": 64,
        },
    ),
    "olmo-hybrid": (
        "OlmoHybridForCausalLM",
        {
            **SIZE,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
        },
    ),
    "falcon-h1": (
        "FalconH1ForCausalLM",
        {**HEADED, **MAMBA2, "mamba_d_ssm": 256},
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        {
            **SIZE,
            "block_ff_dim": INNER,
            "layer_types": ["conv", "full_attention"],
            # what published checkpoints have: vLLM asks for it, transformers no longer does
            "block_dim": HIDDEN,
            "conv_dim": HIDDEN,
        },
    ),
    "lfm2-moe": (
        "Lfm2MoeForCausalLM",
        {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "jamba": (
        "JambaForCausalLM",
        {
            **SIZE,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron-h": (
        "NemotronHForCausalLM",
        {
            **HEADED,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "n_groups": 1,
            "ssm_state_size": 16,
            "chunk_size": 16,
        },
    ),
    "zamba2": (
        "Zamba2ForCausalLM",
        {**SIZE, "layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "mamba_d_state": 16},
    ),
    "mamba": (
        "MambaForCausalLM",
        {**TOKENS, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            **TOKENS,
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 32,
            "n_groups": 1,
            "state_size": 16,
        },
    ),
    # By vLLM's backend for models of transformers: it has no class of its own for these.
    "gpt-neox": ("GPTNeoXForCausalLM", _without(SIZE, "num_key_value_heads")),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", OLD),
    "phi": ("PhiForCausalLM", _without(SIZE, "num_key_value_heads")),
    "starcoder2": ("Starcoder2ForCausalLM", {**SIZE, "sliding_window": None}),
    "olmo2": ("Olmo2ForCausalLM", SIZE),
    "smollm3": ("SmolLM3ForCausalLM", SIZE),
    "glm": ("GlmForCausalLM", HEADED),
    "helium": ("HeliumForCausalLM", HEADED),
    "mistral3-wrapper": (
        "Mistral3ForConditionalGeneration",
        {
            **TOKENS,
            "text_config": {**HEADED, "model_type": "mistral", "sliding_window": None},
            "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16},
            "image_token_index": 500,
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            **TOKENS,
            "text_config": {
                **SIZE,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [4, 6, 6],
                },
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": HIDDEN,
                "fullatt_block_indexes": [0],
            },
            "image_token_id": 500,
            "video_token_id": 501,
            "vision_start_token_id": 502,
            "vision_end_token_id": 503,
        },
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {
            **TOKENS,
            "text_config": {**HEADED, "model_type": "gemma"},
            "vision_config": {
                **TOWER,
                "model_type": "siglip_vision_model",
                "projection_dim": HIDDEN,
            },
            "projection_dim": HIDDEN,
            "image_token_index": 500,
        },
    ),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        {
            **TOKENS,
            "text_config": {**HEADED, "model_type": "llama"},
            "vision_config": TOWER,
            "image_token_id": 500,
        },
    ),
}


def build(name: str, path: Path) -> Any:
    """Write a base of random float32 weights and its tokenizer to `path`; the model, seeded."""
    import torch
    import transformers

    kind, settings = ARCHITECTURES[name]
    cls = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(cls.config_class(**settings)).float().eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                # wide enough that greedy choices have a clear margin
                if parameter.ndim > 1 and "A_log" not in parameter_name:
                    parameter.normal_(0, 0.09)
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    if name in PROCESSORS:
        (path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    tiny.build_tokenizer(path)
    return model
