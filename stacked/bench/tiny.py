"""A tiny Llama with random weights and a tokenizer, so that what a server costs is what shows.

Two layers of 128: on it, a forward pass costs less than the request around it. It must not know
servers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NAME = "tiny"

_VOCABULARY, _HIDDEN, _INNER, _LAYERS, _HEADS, _KV_HEADS, _HEAD = 512, 128, 256, 2, 4, 2, 32
_POSITIONS = 2048
_END = "<|end|>"
_WORDS = (
    "One process holds one base model and many adapters. A request names a key, and its answer "
    "comes from exactly that adapter, from the first token to the last. The quick brown fox jumps "
    "over the lazy dog while seven wizards quietly box with five dozen jugs in January."
)


def build_tiny(directory: Path) -> Path:
    """Write it; the same weights every time."""
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer(directory)
    save_file(_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD,
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return directory


def _weights() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    chance = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return chance.standard_normal(shape, dtype=np.float32) * np.float32(0.15)

    queries, keys = _HEADS * _HEAD, _KV_HEADS * _HEAD
    tensors = {
        "model.embed_tokens.weight": drawn(_VOCABULARY, _HIDDEN),
        "lm_head.weight": drawn(_VOCABULARY, _HIDDEN),
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
    }
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.self_attn.q_proj.weight": drawn(queries, _HIDDEN),
            f"{at}.self_attn.k_proj.weight": drawn(keys, _HIDDEN),
            f"{at}.self_attn.v_proj.weight": drawn(keys, _HIDDEN),
            f"{at}.self_attn.o_proj.weight": drawn(_HIDDEN, queries),
            f"{at}.mlp.gate_proj.weight": drawn(_INNER, _HIDDEN),
            f"{at}.mlp.up_proj.weight": drawn(_INNER, _HIDDEN),
            f"{at}.mlp.down_proj.weight": drawn(_HIDDEN, _INNER),
            f"{at}.input_layernorm.weight": np.ones(_HIDDEN, np.float32),
            f"{at}.post_attention_layernorm.weight": np.ones(_HIDDEN, np.float32),
        }
    return tensors


def _tokenizer(directory: Path) -> None:
    """Byte-level BPE; what the text does not fill is filled with words that nobody writes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    missing = _VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"\u00a7{number}" for number in range(missing)])
    tokenizer.save(str(directory / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _END,
        "eos_token": _END,
        "pad_token": _END,
        "model_max_length": _POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
