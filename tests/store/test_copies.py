"""Copies of the base's weights beside an adapter: left out where they are the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacked.core import Adapter
from stacked.errors import AdapterUnsupported, ModuleUnknown
from stacked.store import AdapterStore, BaseModules
from tests.store.small import (
    HIDDEN,
    VOCABULARY,
    lora_weights,
    raw_safetensors,
    write_adapter,
    write_base,
)

EMBEDDING = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"
SHAPE = [VOCABULARY, HIDDEN]
WEIGHTS = "adapter_model.safetensors"
Raw = tuple[str, list[int], bytes]


def numbers() -> np.ndarray[Any, Any]:
    """A table that BF16 holds exactly, as float32: its lower 16 bits are zero."""
    random = np.random.default_rng(5).normal(size=SHAPE).astype("<f4")
    return (random.view("<u4") & 0xFFFF_0000).view("<f4")


def half(values: np.ndarray[Any, Any]) -> bytes:
    """Such numbers as BF16."""
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


def as_(dtype: str, values: np.ndarray[Any, Any]) -> Raw:
    if dtype == "BF16":
        return (dtype, list(values.shape), half(values))
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    return (dtype, list(values.shape), values.astype(kind).tobytes())


def base_of(directory: Path, table: Raw) -> BaseModules:
    """The small base with another embedding."""
    write_base(directory)
    tensors: dict[str, Raw] = {"model.embed_tokens.weight": table}
    for name, values in lora_weights(prefix="").items():
        module, _, is_a = name.partition(".lora_A")
        if is_a:
            rows = lora_weights(prefix="")[f"{module}.lora_B.weight"].shape[0]
            tensors[f"model.{module}.weight"] = as_("F32", np.zeros((rows, values.shape[1])))
        tensors["model.layers.0.input_layernorm.weight"] = as_("F32", np.ones(HIDDEN))
    (directory / "model.safetensors").write_bytes(raw_safetensors(tensors))
    return BaseModules.read(directory)


def adapter_with(directory: Path, copies: dict[str, Raw]) -> str:
    """The usual adapter with more tensors."""
    write_adapter(directory)
    lora = {name: as_("F32", values) for name, values in lora_weights().items()}
    (directory / WEIGHTS).write_bytes(raw_safetensors({**lora, **copies}))
    return str(directory)


def kept(store: AdapterStore, source: str, base: BaseModules) -> Adapter:
    adapter = store.add(source, base=base)
    store.verify(adapter.digest)
    return adapter


@pytest.mark.parametrize("mine", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bases", ["F64", "F32", "F16", "BF16"])
def test_a_copy_is_left_out_whatever_its_type(
    tmp_path: Path, store: AdapterStore, mine: str, bases: str
) -> None:
    """It is then the adapter that PEFT saves without one, to the digest."""
    table = numbers()
    if bases == "F16" or mine == "F16":  # both types hold numbers of few bits
        table = np.round(table * 8) / 8
    base = base_of(tmp_path / "base", as_(bases, table))
    source = adapter_with(tmp_path / "a", {f"{EMBEDDING}.base_layer.weight": as_(mine, table)})
    plain = kept(store, str(write_adapter(tmp_path / "plain")), base)
    assert kept(store, source, base) == plain
    assert store.list() == [plain]


def test_a_copy_may_have_been_rounded_to_nearest_even(tmp_path: Path, store: AdapterStore) -> None:
    exact, rounded = np.zeros(SHAPE, "<f4"), np.zeros(SHAPE, "<f4")
    exact[0, :5] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3.385e38]
    rounded[0, :5] = [1, 1 + 2**-6, 1 + 2**-7, -1, 2.0**128 * (255 / 256)]
    base = base_of(tmp_path / "base", as_("F32", exact))
    copies = {f"{EMBEDDING}.base_layer.weight": as_("BF16", rounded)}
    kept(store, adapter_with(tmp_path / "a", copies), base)
    rounded[0, 1] = 1 + 2**-7  # the other neighbour
    copies = {f"{EMBEDDING}.base_layer.weight": as_("BF16", rounded)}
    with pytest.raises(AdapterUnsupported, match="1 of 40 rows differ"):
        store.add(adapter_with(tmp_path / "b", copies), base=base)


def test_copies_of_other_names_are_left_out_too(tmp_path: Path, store: AdapterStore) -> None:
    """The output layer of a base that ties it, wrapped names, norms, copies not adapted at all."""
    table = numbers()
    base = base_of(tmp_path / "base", as_("BF16", table))
    copies = {
        f"{HEAD}.base_layer.weight": as_("F32", table),
        f"{EMBEDDING}._fsdp_wrapped_module.base_layer.weight": as_("F32", table),
        f"_orig_mod.{EMBEDDING}.weight": as_("BF16", table),
        "base_model.model.model.layers.0.input_layernorm.weight": as_("F16", np.ones(HIDDEN)),
    }
    plain = kept(store, str(write_adapter(tmp_path / "plain")), base)
    assert kept(store, adapter_with(tmp_path / "a", copies), base) == plain


@pytest.mark.parametrize("name", [f"{EMBEDDING}.base_layer.weight", f"{HEAD}.weight"])
def test_a_changed_copy_is_refused_with_the_number_of_rows(
    tmp_path: Path, store: AdapterStore, name: str
) -> None:
    base = base_of(tmp_path / "base", as_("BF16", numbers()))
    changed = numbers()
    changed[[3, 9, 39]] += 0.5
    source = adapter_with(tmp_path / "a", {name: as_("F32", changed)})
    with pytest.raises(AdapterUnsupported, match="3 of 40 rows differ") as caught:
        store.add(source, base=base)
    assert "Merge the adapter" in str(caught.value)
    assert store.list() == []


def test_every_copy_is_compared(tmp_path: Path, store: AdapterStore) -> None:
    table = numbers()
    base = base_of(tmp_path / "base", as_("F32", table))
    copies = {
        f"{EMBEDDING}.base_layer.weight": as_("F32", table + 1),
        f"{EMBEDDING}.weight": as_("F32", table),
    }
    with pytest.raises(AdapterUnsupported, match="40 of 40 rows differ"):
        store.add(adapter_with(tmp_path / "a", copies), base=base)


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        (as_("F32", np.zeros((42, HIDDEN))), r"shape is \[42, 16\] and the base's is \[40, 16\]"),
        (as_("F32", np.zeros(0)), "empty: the weights were not gathered"),
        (("U8", [320, 1], bytes(320)), "of type U8 and F32, which cannot be compared"),
    ],
)
def test_what_cannot_be_the_base_s_is_refused(
    tmp_path: Path, store: AdapterStore, copy: Raw, said: str
) -> None:
    """Tokens of its own, ZeRO-3's empty tensors, a table packed into four bits."""
    base = base_of(tmp_path / "base", as_("F32", numbers()))
    source = adapter_with(tmp_path / "a", {f"{EMBEDDING}.base_layer.weight": copy})
    with pytest.raises(AdapterUnsupported, match=said):
        store.add(source, base=base)


def test_what_the_base_has_not_is_no_copy(tmp_path: Path, store: AdapterStore) -> None:
    base = base_of(tmp_path / "base", as_("F32", numbers()))
    source = adapter_with(tmp_path / "a", {"base_model.model.score.weight": as_("F32", numbers())})
    with pytest.raises(ModuleUnknown, match="score"):
        store.add(source, base=base)
