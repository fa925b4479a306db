"""Whether weights fit a base: one test for each way in which they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stacked.core import Adapter
from stacked.errors import (
    AdapterConfigInvalid,
    AdapterError,
    AdapterTooLarge,
    AdapterUnsupported,
    AdapterWithoutEffect,
    ModuleUnknown,
    PairIncomplete,
    RankRefused,
    ShapeMismatch,
    StoreDamaged,
    ValueNotFinite,
    ValueTooLarge,
    WeightsInvalid,
)
from stacked.store import AdapterStore, BaseModules, Limits, Report
from stacked.store.checks import check_content, check_directory
from stacked.store.tensors import BOUND, FLOATS
from tests.store.small import (
    HIDDEN,
    VOCABULARY,
    lora_config,
    lora_weights,
    raw_safetensors,
    write_adapter,
    write_base,
    write_json,
)

Q = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHTS = "adapter_model.safetensors"


def check(directory: Path, base: BaseModules, **options: Any) -> Report:
    return check_directory(directory, base, options.pop("max_rank", None), **options)[1]


def refused(
    error: type[AdapterError], said: str, directory: Path, base: BaseModules, **options: Any
) -> None:
    with pytest.raises(AdapterError) as caught:
        check(directory, base, **options)
    assert type(caught.value) is error, str(caught.value)
    assert caught.value.code == error.__name__
    assert said in str(caught.value)


def with_weights(tmp_path: Path, changes: dict[str, Any], **config: Any) -> Path:
    """The usual adapter with tensors changed, added or (None) left out."""
    weights = {**lora_weights(), **changes}
    kept = {name: value for name, value in weights.items() if value is not None}
    return write_adapter(tmp_path / "changed", kept, **config)


def test_a_good_adapter_is_reported(adapter: Path, base: BaseModules) -> None:
    report = check(adapter, base, max_rank=8)
    assert report.rank == 4
    assert report.modules == 6
    assert report.target_modules == ("down_proj", "q_proj", "v_proj")
    assert report.parameters == 2 * 4 * ((16 + 16) + (8 + 16) + (16 + 32))
    assert report.bytes == (adapter / WEIGHTS).stat().st_size
    assert (report.dtypes, report.base, report.warnings) == (("F32",), "small", ())


def test_names_without_peft_s_prefix_are_the_same_modules(
    tmp_path: Path, base: BaseModules
) -> None:
    directory = write_adapter(tmp_path / "bare", lora_weights(prefix="model."))
    assert check(directory, base).modules == 6


def test_ranks_may_differ_by_module(tmp_path: Path, base: BaseModules) -> None:
    changes = {
        f"{Q}.lora_A.weight": np.ones((7, HIDDEN), np.float32),
        f"{Q}.lora_B.weight": np.ones((HIDDEN, 7), np.float32),
    }
    directory = with_weights(tmp_path, changes, rank_pattern={"layers.0.self_attn.q_proj": 7})
    assert check(directory, base, max_rank=8).rank == 7


def test_embedding_and_output_layer_can_be_adapted(tmp_path: Path, base: BaseModules) -> None:
    changes = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, VOCABULARY), "f4"),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((HIDDEN, 4), "f4"),
        "base_model.model.lm_head.lora_A.weight": np.ones((4, HIDDEN), "f4"),
        "base_model.model.lm_head.lora_B.weight": np.ones((VOCABULARY, 4), "f4"),
    }
    report = check(with_weights(tmp_path, changes), base)
    assert {"embed_tokens", "lm_head"} <= set(report.target_modules)


def test_a_quantised_base_takes_any_shape_of_the_right_rank(tmp_path: Path) -> None:
    base = BaseModules("quantised", {"model.q_proj": None})
    good = {
        "base_model.model.model.q_proj.lora_A.weight": np.ones((4, 99), "f4"),
        "base_model.model.model.q_proj.lora_B.weight": np.ones((7, 4), "f4"),
    }
    assert check(write_adapter(tmp_path / "good", good), base).modules == 1
    bad = {**good, "base_model.model.model.q_proj.lora_A.weight": np.ones((5, 99), "f4")}
    refused(ShapeMismatch, "expected [4, any]", write_adapter(tmp_path / "bad", bad), base)


# Config and rank


def test_an_invalid_config_is_refused(tmp_path: Path, base: BaseModules) -> None:
    refused(AdapterConfigInvalid, '"r" is 0', write_adapter(tmp_path / "a", r=0), base)


def test_a_huge_config_is_refused_unread(adapter: Path, base: BaseModules) -> None:
    write_json(adapter / "adapter_config.json", {**lora_config(), "x": "y" * (1 << 20)})
    refused(AdapterTooLarge, "adapter_config.json has 1.0 MiB", adapter, base)


def test_a_rank_above_the_engines_is_refused(adapter: Path, base: BaseModules) -> None:
    refused(RankRefused, "max_lora_rank to 8", adapter, base, max_rank=1)


# The weights file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (b"\xff" * 100, "announces a header"),
        ((1 << 20).to_bytes(8, "little") + b"{}", "cut short"),
        ((2).to_bytes(8, "little") + b"{}", "no tensors"),
        ((4).to_bytes(8, "little") + b"[1] ", "not a readable safetensors file"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "not a readable safetensors file"),
        ((3).to_bytes(8, "little") + b"\xff\xff\xff", "not a readable safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    adapter: Path, base: BaseModules, content: bytes, said: str
) -> None:
    (adapter / WEIGHTS).write_bytes(content)
    refused(WeightsInvalid, said, adapter, base)


def test_a_header_over_the_limit_is_refused_unread(adapter: Path, base: BaseModules) -> None:
    refused(WeightsInvalid, "at most 16 bytes", adapter, base, limits=Limits(max_header_bytes=16))


@pytest.mark.parametrize(
    "offsets",
    [
        {"a": [0, 4], "b": [0, 4]},  # overlap
        {"a": [0, 4], "b": [8, 12]},  # hole
        {"a": [0, 4], "b": [4, 4000]},  # beyond the end
        {"a": [0, 4], "b": [4, 6]},  # not what the shape needs
    ],
)
def test_offsets_that_do_not_tile_the_file_are_refused(
    adapter: Path, base: BaseModules, offsets: dict[str, list[int]]
) -> None:
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": pair} for name, pair in offsets.items()
    }
    text = json.dumps(header).encode()
    (adapter / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refused(WeightsInvalid, "not a readable safetensors file", adapter, base)


def test_a_name_that_stands_twice_in_the_header_is_refused(
    adapter: Path, base: BaseModules
) -> None:
    row = b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + row + b"," + row + b"}"
    (adapter / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    refused(WeightsInvalid, "", adapter, base)


def test_integers_are_refused(tmp_path: Path, base: BaseModules) -> None:
    changes = {f"{Q}.lora_A.weight": np.ones((4, HIDDEN), np.int8)}
    refused(WeightsInvalid, "type I8", with_weights(tmp_path, changes), base)


def test_two_spellings_of_one_half_are_refused(tmp_path: Path, base: BaseModules) -> None:
    changes = {f"{Q.removeprefix('base_model.model.')}.lora_A.weight": np.ones((4, HIDDEN), "f4")}
    refused(WeightsInvalid, "are both lora_A", with_weights(tmp_path, changes), base)


# Names and halves


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (f"{Q}.lora_magnitude_vector", AdapterUnsupported, "DoRA"),
        (f"{Q}.lora_B.bias", AdapterUnsupported, "bias"),
        (f"{Q}.bias", AdapterUnsupported, "bias"),
        ("base_model.model.lm_head.modules_to_save.weight", AdapterUnsupported, "modules_to_save"),
        (
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            AdapterUnsupported,
            "trainable tokens",
        ),
        (
            "base_model.model.model.embed_tokens.base_layer.weight",
            AdapterUnsupported,
            "save_embedding_layers=False",
        ),
        (f"{Q}.lora_a", ModuleUnknown, "MLX"),
        (f"{Q}.lora_down.weight", ModuleUnknown, "kohya"),
        ("lora_te_text_model_q_proj.alpha", ModuleUnknown, "kohya"),
        (f"{Q}.adapter.linear_in.weight", ModuleUnknown, "NeMo"),
        (f"{Q}._fsdp_wrapped_module._flat_param", ModuleUnknown, "flattened parameters; gather"),
        ("base_model.model.model.embed_tokens.weight", ModuleUnknown, "not a LoRA weight"),
        (f"{Q}.lora_embedding_A.weight", ModuleUnknown, "not a LoRA weight"),
        ("lora_A.weight", ModuleUnknown, "not a LoRA weight"),
        ("weight", ModuleUnknown, "not a LoRA weight"),
        ("", ModuleUnknown, "not a LoRA weight"),
    ],
)
def test_a_tensor_that_would_be_ignored_is_refused_by_name(
    tmp_path: Path, base: BaseModules, name: str, error: type[AdapterError], said: str
) -> None:
    directory = with_weights(tmp_path, {name: np.ones(4, np.float32)})
    refused(error, said, directory, base)


@pytest.mark.parametrize(("half", "missing"), [("lora_A", "no lora_A"), ("lora_B", "no lora_B")])
def test_half_a_pair_is_refused(tmp_path: Path, base: BaseModules, half: str, missing: str) -> None:
    directory = with_weights(tmp_path, {f"{Q}.{half}.weight": None})
    refused(PairIncomplete, missing, directory, base)


def test_halves_of_two_kinds_are_no_pair(tmp_path: Path, base: BaseModules) -> None:
    changes = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, VOCABULARY), "f4"),
        "base_model.model.model.embed_tokens.lora_B.weight": np.ones((HIDDEN, 4), "f4"),
    }
    refused(PairIncomplete, "one half", with_weights(tmp_path, changes), base)


def test_a_layer_that_the_base_lacks_is_refused(tmp_path: Path, base: BaseModules) -> None:
    module = "base_model.model.model.layers.2.self_attn.q_proj"
    changes = {
        f"{module}.lora_A.weight": np.ones((4, HIDDEN), "f4"),
        f"{module}.lora_B.weight": np.ones((HIDDEN, 4), "f4"),
    }
    directory = with_weights(tmp_path, changes)
    refused(ModuleUnknown, "1 of 7 adapted modules are not in base small", directory, base)
    refused(ModuleUnknown, "The base has 2 layers", directory, base)


def test_a_norm_is_no_module_to_adapt(tmp_path: Path, base: BaseModules) -> None:
    module = "base_model.model.model.layers.0.input_layernorm"
    changes = {
        f"{module}.lora_A.weight": np.ones((4, HIDDEN), "f4"),
        f"{module}.lora_B.weight": np.ones((HIDDEN, 4), "f4"),
    }
    refused(ModuleUnknown, "input_layernorm", with_weights(tmp_path, changes), base)


@pytest.mark.parametrize(
    ("base_prefix", "adapter_prefix"),
    [
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("model.", "model.language_model."),
        ("model.", "language_model.model."),
        ("model.", ""),
        ("", "model."),
    ],
)
def test_an_adapter_of_another_wrapper_is_told_the_prefix(
    tmp_path: Path, base_prefix: str, adapter_prefix: str
) -> None:
    """vLLM would load it, and never apply it."""
    base = BaseModules.read(write_base(tmp_path / "base", prefix=base_prefix))
    weights = lora_weights(prefix=f"base_model.model.{adapter_prefix}")
    directory = write_adapter(tmp_path / "adapter", weights)
    said = f"begin with '{base_prefix}', the adapter's with '{adapter_prefix}'"
    refused(ModuleUnknown, said, directory, base)


def test_an_adapter_on_a_vision_tower_is_refused(tmp_path: Path) -> None:
    base = BaseModules(
        "multimodal",
        {"visual.qkv": (8, 8), "model.embed_tokens": (8, 8)},
        language_prefix="model.",
    )
    weights = {
        "base_model.model.visual.qkv.lora_A.weight": np.ones((4, 8), "f4"),
        "base_model.model.visual.qkv.lora_B.weight": np.ones((8, 4), "f4"),
    }
    directory = write_adapter(tmp_path / "adapter", weights)
    refused(AdapterUnsupported, "outside the language model", directory, base)


# Shapes and values


@pytest.mark.parametrize(
    ("half", "shape", "said"),
    [
        ("lora_A", (4, 15), "expected [4, 16]"),
        ("lora_B", (17, 4), "expected [16, 4]"),
        ("lora_A", (8, 16), "expected [4, 16] for rank 4"),
        ("lora_B", (16, 8), "expected [16, 4] for rank 4"),
        ("lora_A", (64,), "ZeRO-3"),
        ("lora_A", (0,), "ZeRO-3"),
        ("lora_A", (4, 16, 1), "expected [4, 16]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(
    tmp_path: Path, base: BaseModules, half: str, shape: tuple[int, ...], said: str
) -> None:
    directory = with_weights(tmp_path, {f"{Q}.{half}.weight": np.ones(shape, np.float32)})
    refused(ShapeMismatch, said, directory, base)


def test_a_resized_vocabulary_does_not_fit(tmp_path: Path, base: BaseModules) -> None:
    changes = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 41), "f4"),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((HIDDEN, 4), "f4"),
    }
    refused(ShapeMismatch, "expected [4, 40]", with_weights(tmp_path, changes), base)


def test_an_embedding_is_not_adapted_as_a_linear_layer(tmp_path: Path, base: BaseModules) -> None:
    changes = {
        "base_model.model.model.embed_tokens.lora_A.weight": np.ones((4, HIDDEN), "f4"),
        "base_model.model.model.embed_tokens.lora_B.weight": np.ones((VOCABULARY, 4), "f4"),
    }
    refused(ShapeMismatch, "is an embedding", with_weights(tmp_path, changes), base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_value_that_is_not_finite_is_refused(
    tmp_path: Path, base: BaseModules, dtype: Any, value: float
) -> None:
    weights = lora_weights(dtype=dtype)
    weights[f"{Q}.lora_B.weight"][-1, -1] = value
    directory = write_adapter(tmp_path / "bad", weights)
    refused(ValueNotFinite, f"{Q}.lora_B.weight", directory, base)


@pytest.mark.parametrize(
    ("dtype", "most"), [("f2", "65504"), ("f4", "3.40282e+38"), ("f8", "1.79769e+308")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_above_the_bound_is_refused(
    tmp_path: Path, base: BaseModules, dtype: str, most: str, sign: int
) -> None:
    weights = lora_weights(dtype=np.dtype(dtype))
    weights[f"{Q}.lora_A.weight"][-1, -1] = sign * BOUND
    check(write_adapter(tmp_path / "good", weights), base)
    weights[f"{Q}.lora_A.weight"][-1, -1] = sign * np.finfo(dtype).max
    refused(
        ValueTooLarge,
        f"magnitude {most}; expected at most {BOUND}",
        write_adapter(tmp_path / "bad", weights),
        base,
    )


# Bit patterns from the definitions of the types: up to 10,000, then above, then not finite.
@pytest.mark.parametrize(
    ("dtype", "good", "large", "not_finite"),
    [
        ("F64", [0x40C388 << 40], [(0x40C388 << 40) + 1], [0x7FF << 52]),
        ("F32", [0x461C4000, 0xC61C4000], [0x461C4001, 0xC61C4001], [0x7F800000]),
        ("BF16", [0x461C, 0xC61C, 1], [0x461D, 0x7F7F, 0xFF7F], [0x7F80, 0xFF80, 0x7FC0, 0xFFFF]),
        ("F16", [0x70E2, 0xF0E2, 1], [0x70E3, 0x7BFF, 0xFBFF], [0x7C00, 0xFC00, 0x7E00]),
        ("F8_E4M3", [0x7E, 0xFE, 0x78, 0x01], [], [0x7F, 0xFF]),
        ("F8_E5M2", [0x70, 0xF0, 0x01], [0x71, 0x7B, 0xFB], [0x7C, 0xFC, 0x7D, 0x7F, 0xFF]),
    ],
)
def test_values_are_tested_in_the_bits_of_each_type(
    tmp_path: Path, dtype: str, good: list[int], large: list[int], not_finite: list[int]
) -> None:
    base = BaseModules("one", {"q": (1, 4)})
    directory = write_adapter(tmp_path / "adapter", r=1)
    width = FLOATS[dtype].bits.itemsize

    def write(bits: int) -> None:
        a = b"".join(value.to_bytes(width, "little") for value in (bits, 0, 0, bits))
        b = good[0].to_bytes(width, "little")
        content = raw_safetensors(
            {"q.lora_A.weight": (dtype, [1, 4], a), "q.lora_B.weight": (dtype, [1, 1], b)}
        )
        (directory / WEIGHTS).write_bytes(content)

    for bits in good:
        write(bits)
        assert check(directory, base).dtypes == (dtype,)
    for bits in large:
        write(bits)
        refused(ValueTooLarge, f"expected at most {BOUND}", directory, base)
    for bits in not_finite:
        write(bits)
        refused(ValueNotFinite, "q.lora_A.weight", directory, base)


def test_a_value_in_the_last_of_many_chunks_is_seen(tmp_path: Path) -> None:
    columns = (1 << 20) + 3
    base = BaseModules("wide", {"q": (1, columns)})
    a = np.zeros((2, columns), np.float32)
    a[-1, -1] = np.nan
    weights = {"q.lora_A.weight": a, "q.lora_B.weight": np.ones((1, 2), np.float32)}
    refused(ValueNotFinite, "q.lora_A", write_adapter(tmp_path / "wide", weights, r=2), base)


def test_an_adapter_saved_before_training_is_refused(tmp_path: Path, base: BaseModules) -> None:
    zeros = {
        name: np.negative(np.zeros_like(value))  # -0.0 is zero too
        for name, value in lora_weights().items()
        if "lora_B" in name
    }
    refused(AdapterWithoutEffect, "multiply to zero", with_weights(tmp_path, zeros), base)


# Warnings


def test_a_target_without_tensors_is_told(tmp_path: Path, base: BaseModules) -> None:
    directory = write_adapter(tmp_path / "a", target_modules=["q_proj", "wrong_proj"])
    (warning,) = check(directory, base).warnings
    assert "'wrong_proj'" in warning


# Whatever the bytes are, the answer is a report or a refusal


def assert_answered(directory: Path, base: BaseModules) -> None:
    outcome: Report | AdapterError
    try:
        outcome = check(directory, base)
    except AdapterError as error:
        outcome = error
    if isinstance(outcome, Report):
        assert outcome.modules > 0
    else:
        assert type(outcome) is not AdapterError
        assert 20 < len(str(outcome)) < 2000


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_weights_give_a_report_or_a_refusal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, base: BaseModules
) -> None:
    directory = write_adapter(tmp_path_factory.mktemp("fuzz") / "adapter")
    content = bytearray((directory / WEIGHTS).read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:  # mostly in the header, where there is most to break
        places = st.integers(0, header) | st.integers(0, len(content) - 1)
        for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
            content[place] = byte
    (directory / WEIGHTS).write_bytes(content)
    assert_answered(directory, base)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([*lora_config(), "trainable_token_indices", "use_x", "lora_bias"])


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_a_strange_config_gives_a_report_or_a_refusal(
    changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, base: BaseModules
) -> None:
    directory = write_adapter(tmp_path_factory.mktemp("fuzz") / "adapter")
    write_json(directory / "adapter_config.json", {**lora_config(), **changes})
    assert_answered(directory, base)


@pytest.fixture
def stored(tmp_path: Path, base: BaseModules) -> Adapter:
    source = write_adapter(tmp_path / "adapter")
    adapter = AdapterStore(tmp_path / "store").add(str(source), base=base)
    adapter.path.chmod(0o755)
    for file in adapter.path.iterdir():
        file.chmod(0o644)
    return adapter


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_what_was_added_is_what_it_was(stored: Adapter) -> None:
    check_content(stored)


@pytest.mark.parametrize("damage", [Path.unlink, flipped], ids=["missing", "flipped"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_changed_files_are_refused(
    stored: Adapter, name: str, damage: Callable[[Path], None]
) -> None:
    damage(stored.path / name)
    with pytest.raises(StoreDamaged, match="add it again from its source"):
        check_content(stored)


def test_another_rank_in_the_config_is_other_content(stored: Adapter) -> None:
    file = stored.path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha":', '"lora_alpha": 1, "was":', 1))
    with pytest.raises(StoreDamaged):
        check_content(stored)
