"""A very small base and adapters for it, written with numpy and safetensors alone.

It must not know the package under test: what it writes is what PEFT and transformers write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file

HIDDEN, INNER, VOCABULARY, LAYERS = 16, 32, 40, 2
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
Weights = dict[str, np.ndarray[Any, Any]]


def write_base(
    directory: Path, *, prefix: str = "model.", tied: bool = True, layers: int = LAYERS
) -> Path:
    """A checkpoint with the layers above; `prefix` is what a multimodal wrapper puts before."""
    directory.mkdir(parents=True)
    tensors: Weights = {f"{prefix}embed_tokens.weight": np.zeros((VOCABULARY, HIDDEN), np.float32)}
    for layer in range(layers):
        tensors[f"{prefix}layers.{layer}.input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        for name, shape in LINEAR.items():
            tensors[f"{prefix}layers.{layer}.{name}.weight"] = np.zeros(shape, np.float32)
    if not tied:
        tensors["lm_head.weight"] = np.zeros((VOCABULARY, HIDDEN), np.float32)
    save_file(tensors, directory / "model.safetensors")
    write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": HIDDEN,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": layers,
            "tie_word_embeddings": tied,
        },
    )
    return directory


def lora_weights(
    *,
    rank: int = 4,
    seed: int = 0,
    prefix: str = "base_model.model.model.",
    dtype: Any = np.float32,
) -> Weights:
    """Both halves for every linear layer of the base, random."""
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEAR.items():
            module = f"{prefix}layers.{layer}.{name}"
            weights[f"{module}.lora_A.weight"] = random.normal(size=(rank, columns)).astype(dtype)
            weights[f"{module}.lora_B.weight"] = random.normal(size=(rows, rank)).astype(dtype)
    return weights


def lora_config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes for the weights above, mostly; a change to None leaves the key out."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "small",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "peft_version": "0.21.2",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": sorted(name.rpartition(".")[2] for name in LINEAR),
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "megatron_core": "megatron.core",
    }
    return {key: value for key, value in {**config, **changes}.items() if value is not None}


def write_adapter(
    directory: Path, weights: Mapping[str, Any] | None = None, seed: int = 0, **config: Any
) -> Path:
    """An adapter's directory as PEFT saves it."""
    directory.mkdir(parents=True)
    write_json(directory / "adapter_config.json", lora_config(**config))
    content = dict(lora_weights(seed=seed)) if weights is None else dict(weights)
    (directory / "adapter_model.safetensors").write_bytes(save(content, {"format": "pt"}))
    return directory


def raw_safetensors(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file of types that numpy lacks: name -> (dtype, shape, bytes)."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
