"""Adapters against what an engine applies them to: names, renames, and when an engine is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stacked.errors import ModuleUnapplied, ModuleUnknown
from stacked.store import BaseModules
from stacked.store.adaptable import Adaptable, Renames
from stacked.store.checks import Report, check_directory
from tests.store.small import lora_weights, write_adapter, write_base

LINEAR = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


class Answers:
    """An engine that answers with `told`; how often it was asked."""

    def __init__(self, told: Adaptable, *, known: bool = False) -> None:
        self.told, self.was_known, self.asked = told, known, 0

    def known(self) -> Adaptable | None:
        return self.told if self.was_known else None

    def ask(self) -> Adaptable:
        self.asked += 1
        return self.told


@pytest.fixture
def base(tmp_path: Path) -> BaseModules:
    return BaseModules.read(write_base(tmp_path / "base"))


@pytest.fixture
def whole(base: BaseModules) -> Adaptable:
    return Adaptable("SmallForCausalLM", {n: s for n, s in base.modules.items() if "layers" in n})


def check(directory: Path, base: BaseModules) -> Report:
    return check_directory(directory, base, None)[1]


def test_an_engine_that_applies_all_of_an_adapter_passes_it(
    tmp_path: Path, base: BaseModules, whole: Adaptable
) -> None:
    engine = Answers(whole, known=True)
    report = check(write_adapter(tmp_path / "a"), replace(base, engine=engine))
    assert report.modules == len(lora_weights()) // 2
    assert engine.asked == 0


def test_a_module_that_the_engine_leaves_out_is_refused_by_name(
    tmp_path: Path, base: BaseModules, whole: Adaptable
) -> None:
    some = {name: shape for name, shape in whole.modules.items() if "q_proj" not in name}
    engine = Answers(replace(whole, modules=some), known=True)
    with pytest.raises(ModuleUnapplied) as refusal:
        check(write_adapter(tmp_path / "a"), replace(base, engine=engine))
    assert "model.layers.*.self_attn.q_proj" in str(refusal.value)
    assert "SmallForCausalLM" in str(refusal.value)


def test_a_module_that_is_passed_by_is_refused_with_the_reason(whole: Adaptable) -> None:
    name = "model.layers.0.self_attn.kv_b_proj"
    told = replace(whole, passed_by={name: "it is folded into the query"})
    with pytest.raises(ModuleUnapplied, match=r"1 of 1 .*kv_b_proj \(it is folded"):
        told.check([name])


def test_layers_of_the_checkpoint_need_no_asking(
    tmp_path: Path, base: BaseModules, whole: Adaptable
) -> None:
    engine = Answers(whole)
    check(write_adapter(tmp_path / "a"), replace(base, engine=engine))
    assert engine.asked == 0


def test_an_engine_is_asked_about_modules_outside_the_layers(
    base: BaseModules, whole: Adaptable
) -> None:
    engine = Answers(whole)
    asking = replace(base, engine=engine)
    assert asking.adaptable(["model.layers.0.self_attn.q_proj", "lm_head"]) is whole
    assert engine.asked == 1
    with pytest.raises(ModuleUnapplied, match="lm_head"):
        whole.check(["lm_head"])


def test_names_of_another_wrapper_are_those_that_the_engine_takes_for_them(
    tmp_path: Path, base: BaseModules, whole: Adaptable
) -> None:
    names = Renames(prefix=(("model.language_model.", "model."),))
    engine = Answers(replace(whole, renames=names))
    wrapped = {
        name.replace("model.layers", "model.language_model.layers"): value
        for name, value in lora_weights().items()
    }
    report = check(write_adapter(tmp_path / "a", wrapped), replace(base, engine=engine))
    assert (report.modules, engine.asked) == (len(wrapped) // 2, 1)


def test_names_that_the_engine_does_not_take_either_are_refused(
    tmp_path: Path, base: BaseModules, whole: Adaptable
) -> None:
    engine = Answers(whole)
    wrapped = {
        name.replace("model.layers", "other.layers"): value
        for name, value in lora_weights().items()
    }
    with pytest.raises(ModuleUnknown, match="another wrapper"):
        check(write_adapter(tmp_path / "a", wrapped), replace(base, engine=engine))
    assert engine.asked == 1


def test_an_adapter_of_a_larger_model_is_refused_without_asking(
    tmp_path: Path, base: BaseModules, whole: Adaptable
) -> None:
    engine = Answers(whole)
    small = replace(BaseModules.read(write_base(tmp_path / "s", layers=1)), engine=engine)
    with pytest.raises(ModuleUnknown, match="another size"):
        check(write_adapter(tmp_path / "a"), small)
    assert engine.asked == 0


@pytest.mark.parametrize(
    ("renames", "name", "expected"),
    [
        (Renames(), "model.layers.0.q", "model.layers.0.q"),
        (Renames(prefix=(("model.", "m."),)), "model.model.q", "m.model.q"),
        (Renames(part=((".attn.", ".a."),)), "x.attn.attn.q", "x.a.attn.q"),
        (Renames(suffix=((".q.lora_A.weight", ".p.lora_A.weight"),)), "x.q", "x.p"),
        (Renames(regex=((r"^h\.(\d+)", 0, r"layers.\1"),)), "h.3.q", "layers.3.q"),
        (Renames(prefix=(("a.", "b."), ("b.", "c."))), "a.q", "c.q"),
    ],
)
def test_names_are_mapped_as_vllm_maps_them(renames: Renames, name: str, expected: str) -> None:
    assert Adaptable("X", {}, renames=renames).name_of(name) == expected


@pytest.mark.parametrize(
    ("prefix", "name", "expected"),
    [
        ("language_model.", "model.layers.0.q_proj", "language_model.model.layers.0.q_proj"),
        ("language_model.", "lm_head", "language_model.lm_head"),
        ("llm.", "model.layers.0.q_proj", "llm.layers.0.q_proj"),
        ("llm.", "layers.0.q_proj", "llm.layers.0.q_proj"),
        ("llm.", "llm.layers.0.q_proj", "llm.layers.0.q_proj"),
        ("llm.", "model.layers.9.q_proj", "model.layers.9.q_proj"),
        ("", "model.layers.0.q_proj", "model.layers.0.q_proj"),
    ],
)
def test_text_only_names_are_those_of_the_language_model_within(
    prefix: str, name: str, expected: str
) -> None:
    """As `_get_text_lora_names` of vLLM 0.33 has it, the other way round."""
    inner = ("model.layers.0.q_proj", "lm_head") if prefix == "language_model." else None
    modules = [prefix + each for each in inner or ("layers.0.q_proj",)]
    told = Adaptable("X", dict.fromkeys(modules), text_prefix=prefix)
    assert told.name_of(name) == expected


def test_an_answer_survives_being_written_down(whole: Adaptable) -> None:
    told = replace(
        whole,
        modules={**whole.modules, "experts": None},
        passed_by={"x": "y"},
        renames=Renames(regex=(("a", 2, "b"),), prefix=(("c", "d"),)),
    )
    assert Adaptable.from_json(told.to_json()) == told
    with pytest.raises(ValueError, match="architecture"):
        Adaptable.from_json(b"{}")
