"""The module tree of a base, from several kinds of checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stacked.errors import BaseNotFound
from stacked.store import BaseModules
from tests.store.small import HIDDEN, LAYERS, VOCABULARY, raw_safetensors, write_base, write_json


def test_linear_layers_and_embeddings_are_modules_and_norms_are_not(base: BaseModules) -> None:
    assert base.modules["model.layers.1.mlp.down_proj"] == (16, 32)
    assert base.modules["model.embed_tokens"] == (VOCABULARY, HIDDEN)
    assert base.embeddings == {"model.embed_tokens"}
    assert not any("norm" in name for name in base.modules)
    assert (base.vocab_size, base.layers) == (VOCABULARY, LAYERS)
    assert str(base) == "small (LlamaForCausalLM)"


def test_a_tied_checkpoint_still_has_an_output_layer(base: BaseModules) -> None:
    assert base.modules["lm_head"] == (VOCABULARY, HIDDEN)


def test_an_untied_output_layer_keeps_its_own_shape(tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base", tied=False)
    assert BaseModules.read(directory).modules["lm_head"] == (VOCABULARY, HIDDEN)


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    names = {"model.a.weight": "one.safetensors", "model.b.weight": "two.safetensors"}
    for name, file in names.items():
        save_file({name: np.zeros((2, 3), np.float32)}, tmp_path / file)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": names})
    assert BaseModules.read(tmp_path).modules == {"model.a": (2, 3), "model.b": (2, 3)}


def test_packed_weights_of_quantised_bases_have_an_unknown_shape(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    (tmp_path / "model.safetensors").write_bytes(
        raw_safetensors(
            {
                "gptq.qweight": ("I32", [1, 2], bytes(8)),
                "packed.weight": ("U8", [2, 2], bytes(4)),
                "fp8.weight": ("F8_E4M3", [2, 2], bytes(4)),
                "bf16.weight": ("BF16", [2, 1], bytes(4)),
            }
        )
    )
    modules = BaseModules.read(tmp_path).modules
    assert modules == {"gptq": None, "packed": None, "fp8": (2, 2), "bf16": (2, 1)}


def test_extra_prediction_layers_are_not_modules(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"num_hidden_layers": 1})
    names = ["model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight", "mtp.fc.weight"]
    save_file(
        {name: np.zeros((2, 2), np.float32) for name in names}, tmp_path / "model.safetensors"
    )
    assert set(BaseModules.read(tmp_path).modules) == {"model.layers.0.q_proj"}


def test_the_language_model_of_a_multimodal_base_is_told_from_its_towers(tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base", prefix="model.language_model.")
    config = json.loads((directory / "config.json").read_text())
    text = {"vocab_size": config.pop("vocab_size"), "num_hidden_layers": LAYERS}
    write_json(
        directory / "config.json", {**config, "text_config": text, "vision_config": {"depth": 2}}
    )
    base = BaseModules.read(directory)
    assert base.language_prefix == "model.language_model."
    assert base.in_language_model("model.language_model.layers.0.self_attn.q_proj")
    assert base.in_language_model("lm_head")
    assert not base.in_language_model("model.visual.blocks.0.attn.qkv")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "config.json"),
        ({"config.json": b"{}"}, "no \\*.safetensors"),
        ({"config.json": b"{"}, "not valid JSON"),
        ({"config.json": b"[]"}, "expected a JSON object"),
        ({"config.json": b"{}", "model.safetensors": b"short"}, "model.safetensors"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, "no weight_map"),
    ],
)
def test_what_is_no_base_is_named(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BaseNotFound, match=said):
        BaseModules.read(tmp_path)
