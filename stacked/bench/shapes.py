"""Bases to measure with without a download: Llama's shapes, with random weights.

`tiny` has two layers of 128 and weights on disk, so that a forward pass costs less than the request
around it and the cost of serving shows. The others have the sizes of published models; vLLM makes
random weights (`load_format=dummy`). Speeds are real, answers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama; `drawn`: small enough that its weights are written to disk."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    positions: int
    tied: bool = False
    drawn: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of its checkpoint."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        tensors: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            tensors["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            tensors |= {
                f"{at}.self_attn.q_proj.weight": (queries, self.hidden),
                f"{at}.self_attn.k_proj.weight": (keys, self.hidden),
                f"{at}.self_attn.v_proj.weight": (keys, self.hidden),
                f"{at}.self_attn.o_proj.weight": (self.hidden, queries),
                f"{at}.mlp.gate_proj.weight": (self.inner, self.hidden),
                f"{at}.mlp.up_proj.weight": (self.inner, self.hidden),
                f"{at}.mlp.down_proj.weight": (self.hidden, self.inner),
                f"{at}.input_layernorm.weight": (self.hidden,),
                f"{at}.post_attention_layernorm.weight": (self.hidden,),
            }
        return tensors


SHAPES = {
    "tiny": Shape(128, 256, 2, 4, 2, 32, 512, 2048, drawn=True),
    # As Meta's config.json of Llama 3.2 1B, 3.2 3B and 3.1 8B.
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, 131072, tied=True),
    "llama-3b": Shape(3072, 8192, 28, 24, 8, 128, 128256, 131072, tied=True),
    "llama-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256, 131072),
}

_TOKENS = 512
_END = "<|end|>"
_WORDS = (
    "One process holds one base model and many adapters. A request names a key, and its answer "
    "comes from exactly that adapter, from the first token to the last. The quick brown fox jumps "
    "over the lazy dog while seven wizards quietly box with five dozen jugs in January."
)


def build_shape(name: str, directory: Path) -> Path:
    """Write the base of this name in SHAPES below `directory`; the same every time."""
    shape = SHAPES[name]
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(path, shape.positions)
    checkpoint = path / "model.safetensors"
    if shape.drawn:
        save_file(_drawn(shape.tensors()), checkpoint, metadata={"format": "pt"})
    else:
        _write_hollow(shape.tensors(), checkpoint)
    config = json.dumps(_config(shape), indent=2)
    (path / "config.json").write_text(config + "\n", encoding="utf-8")
    return path


def shape_options(name: str) -> dict[str, Any]:
    """The options with which vLLM serves it."""
    return {} if SHAPES[name].drawn else {"load_format": "dummy"}


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0 if shape.drawn else 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "float32" if shape.drawn else "bfloat16",
    }


def _drawn(
    tensors: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Norms of one, and normal numbers small enough that hidden states also stay small."""
    chance = np.random.default_rng(0)
    return {
        name: np.ones(size, np.float32)
        if len(size) == 1
        else chance.standard_normal(size, dtype=np.float32) * np.float32(0.15)
        for name, size in tensors.items()
    }


def _write_hollow(tensors: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """A safetensors file with a valid header, whose bfloat16 weights are a hole on the disk.

    Reading a base's modules only needs headers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        begin, end = end, end + 2 * prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


def _write_tokenizer(directory: Path, longest: int) -> None:
    """Byte-level BPE; the rest of the vocabulary is filled with words that do not occur."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TOKENS,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    missing = _TOKENS - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"\u00a7{number}" for number in range(missing)])
    tokenizer.save(str(directory / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _END,
        "eos_token": _END,
        "pad_token": _END,
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
