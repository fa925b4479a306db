"""What trainers write beside what PEFT does: kept as PEFT would have saved it, or refused."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from stacked.core import Adapter
from stacked.errors import (
    AdapterConfigInvalid,
    AdapterError,
    ModuleUnknown,
    ShapeMismatch,
    WeightsInvalid,
)
from stacked.store import AdapterStore, BaseModules
from stacked.store.limits import DEFAULT
from stacked.store.plain import make_plain
from tests.store.small import Weights, lora_weights, write_adapter

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def named(spell: Callable[[str], str]) -> Weights:
    return {spell(name): values for name, values in lora_weights().items()}


def stored_config(adapter: Adapter) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter.path / CONFIG).read_text())
    return config


def refused(
    store: AdapterStore, base: BaseModules, directory: Path, error: type[AdapterError], *said: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        store.add(str(directory), base=base)
    assert type(caught.value) is error, str(caught.value)
    for part in said:
        assert part in str(caught.value)
    assert store.list() == []


# Names


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace(PREFIX, f"_fsdp_wrapped_module.{PREFIX}_fsdp_wrapped_module."),
        lambda name: name.replace(".lora_", "._fsdp_wrapped_module.lora_"),
        lambda name: name.replace(".weight", "._fsdp_wrapped_module.weight"),
        lambda name: f"module.{name}",
        lambda name: name.replace(PREFIX, f"{PREFIX}module."),
        lambda name: f"_forward_module.model.{name}",
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".my_adapter._fsdp_wrapped_module.weight"),
        lambda name: "module." + name.removeprefix(PREFIX),
    ],
)
def test_names_lose_what_wrappers_put_into_them(
    tmp_path: Path, store: AdapterStore, base: BaseModules, spell: Callable[[str], str]
) -> None:
    """Down to the digest, it is the adapter that PEFT saves."""
    wrapped = store.add(str(write_adapter(tmp_path / "wrapped", named(spell))), base=base)
    plain = store.add(str(write_adapter(tmp_path / "plain")), base=base)
    assert wrapped == plain
    kept = load_file(wrapped.path / WEIGHTS)
    assert all(np.array_equal(kept[name], values) for name, values in lora_weights().items())
    store.verify(wrapped.digest)


def test_what_is_plain_is_kept_byte_for_byte(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    source = write_adapter(tmp_path / "bare", lora_weights(prefix="model."))
    kept = store.add(str(source), base=base)
    assert (kept.path / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_embeddings_lose_the_adapter_s_name(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    module = f"{PREFIX}model.embed_tokens.lora_embedding"
    weights = {
        f"{module}_A.default": np.ones((4, 40), np.float16),
        f"{module}_B.default": np.ones((16, 4), np.float32),
    }
    source = write_adapter(tmp_path / "a", weights, target_modules="model.embed_tokens")
    kept = store.add(str(source), base=base)
    assert load_file(kept.path / WEIGHTS).keys() == {f"{module}_A", f"{module}_B"}


def test_several_adapters_in_one_file_are_refused_by_name(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    both = {
        name.replace(".weight", f".{adapter}.weight"): values
        for name, values in lora_weights().items()
        for adapter in ("german", "french")
    }
    source = write_adapter(tmp_path / "both", both)
    refused(store, base, source, ModuleUnknown, "2 adapters ('french', 'german')", "save each")


def test_one_tensor_under_two_spellings_is_refused(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    twice = {**lora_weights(), **named(lambda name: f"_orig_mod.{name}")}
    refused(store, base, write_adapter(tmp_path / "a", twice), WeightsInvalid, "keep one")


def test_a_wrapped_name_that_fits_nowhere_is_told_as_the_base_would_spell_it(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    wrapped = named(lambda name: name.replace("layers.1.", "layers.9._orig_mod."))
    source = write_adapter(tmp_path / "a", wrapped)
    refused(store, base, source, ModuleUnknown, "'model.layers.9.", "2 layers; was the adapter")


def test_empty_tensors_of_zero_3_are_told_under_wrapped_names_too(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    empty = {name: np.zeros(0, np.float32) for name in named(lambda name: f"module.{name}")}
    refused(store, base, write_adapter(tmp_path / "a", empty), ShapeMismatch, "not gathered")


def test_a_name_without_end_is_refused(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    long = named(lambda name: name.replace("layers.1.", "layers.1." + "_orig_mod." * 1000))
    refused(store, base, write_adapter(tmp_path / "a", long), ModuleUnknown, "characters")


# Patterns


def ranked(ranks: dict[str, int]) -> Weights:
    """The usual weights with other ranks for the modules whose names contain a key."""
    weights: Weights = {}
    for name, values in lora_weights().items():
        rank = next((rank for part, rank in ranks.items() if part in name), 4)
        shape = (rank, values.shape[1]) if ".lora_A." in name else (values.shape[0], rank)
        weights[name] = np.full(shape, 0.5, np.float32)
    return weights


def test_expressions_are_kept_as_the_names_that_they_match(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    """The engine runs no expression: it would for every module, and cannot be interrupted."""
    source = write_adapter(
        tmp_path / "a",
        ranked({"layers.0.self_attn": 7, "q_proj": 5}),
        rank_pattern={r".*\.layers\.0\.self_attn\.(q|v)_proj": 7, "q_proj": 5, ".*never": 512},
        alpha_pattern={".*(q|down)_proj": 32},
    )
    config = stored_config(store.add(str(source), base=base, max_rank=8))
    assert config["rank_pattern"] == {
        r"^model\.layers\.0\.self_attn\.q_proj|^model\.layers\.0\.self_attn\.v_proj": 7,
        r"^model\.layers\.1\.self_attn\.q_proj": 5,
    }
    assert config["alpha_pattern"] == {"down_proj|q_proj": 32}


def test_a_pattern_for_every_module_is_served(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    """As many as large models have; most of them match nothing here."""
    many = {f"model.layers.{layer}.self_attn.q_proj": layer + 5 for layer in range(126)}
    source = write_adapter(
        tmp_path / "a",
        ranked({"layers.0.self_attn.q": 5, "layers.1.self_attn.q": 6}),
        rank_pattern=many,
        alpha_pattern=dict.fromkeys(many, 64),
    )
    adapter = store.add(str(source), base=base, max_rank=8)
    assert adapter.rank == 6
    assert stored_config(adapter)["alpha_pattern"] == {"q_proj": 64}
    store.check(adapter.digest, base)
    store.verify(adapter.digest)


def test_names_that_the_checkpoint_has_not_keep_what_patterns_say_of_them(
    tmp_path: Path, base: BaseModules
) -> None:
    """Whether the engine knows them is not asked here."""
    source = write_adapter(
        tmp_path / "a",
        lora_weights(prefix="base_model.model.other."),
        alpha_pattern={".*q_proj": 3},
    )
    make_plain(source, base, DEFAULT)
    assert json.loads((source / CONFIG).read_text())["alpha_pattern"] == {"q_proj": 3}


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_broken_expression_is_refused(
    tmp_path: Path, store: AdapterStore, base: BaseModules, key: str
) -> None:
    config: dict[str, Any] = {key: {"(": 8}}
    source = write_adapter(tmp_path / "a", **config)
    refused(store, base, source, AdapterConfigInvalid, f"{key} '(' is not a pattern")


@pytest.mark.parametrize(
    "pattern",
    [
        "layers.0._orig_mod.self_attn.q_proj",  # as the trainer saw it
        "layers.0.self_attn.q_proj",  # as its user wrote it
        r"model\.layers\.0\._orig_mod\..*q_proj",
    ],
)
def test_patterns_are_for_the_wrapped_name_or_the_plain_one(
    tmp_path: Path, store: AdapterStore, base: BaseModules, pattern: str
) -> None:
    source = write_adapter(
        tmp_path / "a",
        {
            name.replace("layers.0.", "layers.0._orig_mod."): values
            for name, values in ranked({"layers.0.self_attn.q": 7}).items()
        },
        rank_pattern={pattern: 7},
        target_modules=["_orig_mod.self_attn.q_proj", "q_proj", "v_proj", "down_proj"],
    )
    adapter = store.add(str(source), base=base)
    assert adapter.rank == 7
    targets = stored_config(adapter)["target_modules"]
    assert targets == ["down_proj", "q_proj", "self_attn.q_proj", "v_proj"]


def test_patterns_that_differ_for_the_wrapped_and_the_plain_name_are_refused(
    tmp_path: Path, store: AdapterStore, base: BaseModules
) -> None:
    source = write_adapter(
        tmp_path / "a",
        named(lambda name: name.replace("layers.0.", "layers.0._orig_mod.")),
        alpha_pattern={"layers.0._orig_mod.mlp.down_proj": 8, "layers.0.mlp.down_proj": 16},
    )
    refused(store, base, source, AdapterConfigInvalid, "for the one and", "keep one of them")


# Targets


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r"(?i)MODEL\.layers\.\d+\..*_proj"},
        {"target_modules": "(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj|down_proj).*?)|(?:lm_head)"},
        {
            "target_modules": [
                "layers.0.self_attn.q_proj",
                "1.self_attn.q_proj",
                "v_proj",
                "down_proj",
            ]
        },
        {"layers_to_transform": [0, 1]},
        {"layers_to_transform": [1, 0, 7], "layers_pattern": ["h", "layers"]},
        {"exclude_modules": ["proj", "lm_head"]},
        {"exclude_modules": "q_proj"},
    ],
)
def test_targets_may_be_named_in_all_of_peft_s_ways(
    tmp_path: Path, store: AdapterStore, base: BaseModules, config: dict[str, Any]
) -> None:
    store.add(str(write_adapter(tmp_path / "a", **config)), base=base)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, 2),
        ({"target_modules": ["proj"]}, 6),
        ({"target_modules": "q_proj"}, 6),  # a pattern is for the whole name
        ({"target_modules": r".*\.0\..*"}, 3),
        ({"layers_to_transform": 1}, 3),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, 3),
        ({"exclude_modules": ["self_attn.v_proj"]}, 2),
        ({"exclude_modules": ".*v_proj"}, 2),
    ],
)
def test_weights_that_peft_would_leave_out_are_refused(
    tmp_path: Path, store: AdapterStore, base: BaseModules, config: dict[str, Any], count: int
) -> None:
    source = write_adapter(tmp_path / "a", **config)
    said = f"leaves out {count} of the 6 modules"
    refused(store, base, source, AdapterConfigInvalid, said, "'down_proj, q_proj, v_proj'")


@pytest.mark.parametrize(
    "config",
    [{"exclude_modules": 5}, {"exclude_modules": {"q_proj": 1}}, {"exclude_modules": True}],
)
def test_what_excludes_no_module_is_refused(
    tmp_path: Path, store: AdapterStore, base: BaseModules, config: dict[str, Any]
) -> None:
    source = write_adapter(tmp_path / "a", **config)
    refused(store, base, source, AdapterConfigInvalid, '"exclude_modules" is')


@pytest.mark.parametrize("pattern", [5, True, {"a": 1}, [None]])
def test_an_odd_pattern_of_layers_bounds_nothing(
    tmp_path: Path, store: AdapterStore, base: BaseModules, pattern: Any
) -> None:
    config = {"layers_to_transform": [7], "layers_pattern": pattern}
    store.add(str(write_adapter(tmp_path / "a", **config)), base=base)


# Whatever it is

LORA = ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "default", "weight", "bias"]
MODULES = ["base_model", "model", "layers", "0", "self_attn", "q_proj", "embed_tokens", "lm_head"]
PARTS = st.sampled_from([*MODULES, *LORA, "module", "_orig_mod", "base_layer"])
NAMES = st.lists(PARTS, min_size=1, max_size=9).map(".".join) | st.text(max_size=9)


@settings(max_examples=150)
@given(st.sets(NAMES, max_size=6), st.sampled_from([(4, 16), (16, 4), (40, 16), (0,), ()]))
def test_any_names_give_an_adapter_or_a_refusal(
    base: BaseModules, names: set[str], shape: tuple[int, ...]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        weights = {name: np.zeros(shape, np.float32) for name in names}
        source = write_adapter(Path(place) / "a", weights)
        with contextlib.suppress(AdapterError):
            AdapterStore(Path(place) / "store").add(str(source), base=base)
