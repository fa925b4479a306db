"""Random adapters pass the store's own checks; the tiny base is a base; settings are told alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from stacked.bench.adapters import ATTENTION, LINEAR, generate, size_of
from stacked.bench.engine_child import without_lora
from stacked.bench.shapes import SHAPES, build_shape
from stacked.bench.subject import (
    Requested,
    adapters_of,
    config_of,
    engine_options,
    plan_of,
    prepare,
    rank_of,
    subject_of,
)
from stacked.config import parse
from stacked.errors import BaseNotFound, ConfigInvalid, ParameterInvalid, WeightsInvalid
from stacked.store import BaseModules
from stacked.store.checks import check_directory
from stacked.store.limits import Limits
from stacked.store.tensors import read_header


class Told:
    """A Telling that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fractions: list[float] = []
        self.notes: list[str] = []

    def begin(self, text: str) -> None:
        self.steps.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, text: str) -> None: ...

    def fraction(self, done: float) -> None:
        self.fractions.append(done)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shape("tiny", tmp_path_factory.mktemp("shapes"))


def test_tiny_base_can_be_loaded_and_read_back(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert len(tokenizer) == 512
    ids = tokenizer("The quick brown fox").input_ids
    assert tokenizer.decode(ids) == "The quick brown fox"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert sum(each.numel() for each in model.parameters()) < 1_000_000


def test_tiny_base_is_the_same_every_time(tiny: Path, tmp_path: Path) -> None:
    again = build_shape("tiny", tmp_path)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (tiny / name).read_bytes()


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.drawn])
def test_a_base_without_weights_has_its_modules_and_takes_no_room(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = build_shape(name, tmp_path)
    checkpoint = path / "model.safetensors"
    assert checkpoint.stat().st_size > 2e9
    assert checkpoint.stat().st_blocks * 512 < 1e6
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    written = read_header(checkpoint, Limits())
    held = {key: tuple(each.shape) for key, each in model.state_dict().items()}
    if SHAPES[name].tied:
        del held["lm_head.weight"]
    assert {tensor.name: tuple(tensor.shape) for tensor in written.values()} == held


def test_a_base_without_weights_is_served_with_drawn_ones(tmp_path: Path) -> None:
    subject = prepare(Requested("llama-1b", rank=4), 1, tmp_path, tmp_path, Told())
    assert subject.options()["load_format"] == "dummy"
    assert subject.summary()["engine"] == {"load_format": "dummy"}
    assert config_of(subject).engine == {"load_format": "dummy"}
    said = Requested("llama-1b", rank=4, engine={"load_format": "auto"})
    assert prepare(said, 0, tmp_path, tmp_path, Told()).engine == {"load_format": "auto"}


@pytest.mark.parametrize("targets", [ATTENTION, LINEAR])
def test_random_adapters_fit_their_base_and_differ(
    tiny: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    modules = BaseModules.read(tiny)
    one, two = generate(modules, 2, 4, targets, tmp_path)
    for path in (one, two):
        _, checked = check_directory(path, modules, 4)
        assert checked.rank == 4
        assert set(checked.target_modules) == set(targets)
    first, second = (load_file(path / "adapter_model.safetensors") for path in (one, two))
    assert first.keys() == second.keys()
    assert len(first) == 2 * 2 * len(targets)
    assert all(np.isfinite(each).all() and each.any() for each in first.values())
    assert not any(np.array_equal(first[name], second[name]) for name in first)


def test_size_of_an_adapter_is_what_its_rank_and_modules_make(tiny: Path, tmp_path: Path) -> None:
    (path,) = generate(BaseModules.read(tiny), 1, 16, ("q_proj",), tmp_path)
    weights = 2 * 16 * (128 + 128) * 2  # layers, rank, in + out, bytes of float16
    assert weights < size_of(path) < weights + 2000


def test_base_without_the_targets_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="no modules called c_attn"):
        generate(BaseModules.read(tiny), 1, 4, ("c_attn",), tmp_path)


def test_subject_is_made_of_nothing_but_a_name(tmp_path: Path) -> None:
    tell = Told()
    subject = prepare(Requested("tiny", rank=4), 3, tmp_path, tmp_path, tell)
    assert list(subject.members) == ["a0", "a1", "a2"]
    assert tell.fractions[-1] == 1.0
    assert subject.summary()["adapters"] == 3
    assert str(tmp_path) not in json.dumps(subject.summary())
    assert subject.options()["max_loras"] == 3
    assert "enable_lora" not in subject.options()
    assert subject_of(config_of(subject), tmp_path).adapters == list(subject.adapters)


def test_own_adapters_are_taken_and_must_be_enough(tmp_path: Path) -> None:
    made = prepare(Requested("tiny", rank=4), 3, tmp_path, tmp_path, Told())
    own = Requested("tiny", adapters=list(made.adapters))
    subject = prepare(own, 2, tmp_path / "own", tmp_path, Told())
    assert [path.name for path in subject.adapters] == ["adapter-0", "adapter-1"]
    assert (subject.rank, subject.targets) == (4, "as they are")
    with pytest.raises(ParameterInvalid, match="4 adapters are needed and 3 named"):
        prepare(own, 4, tmp_path / "more", tmp_path, Told())
    with pytest.raises(WeightsInvalid, match="no LoRA adapter"):
        rank_of(tmp_path)


def test_unknown_targets_and_remote_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterInvalid, match="no targets 'all'"):
        prepare(Requested("tiny", targets="all"), 1, tmp_path, tmp_path, Told())
    tree = {"base": {"model": "/b"}, "group": {"members": [{"source": "https://host/a.zip"}]}}
    with pytest.raises(ConfigInvalid, match="no directory"):
        subject_of(parse(tree, where="test", directory=Path("/")), tmp_path)


def test_engine_options_are_read_as_yaml() -> None:
    words = ["max_model_len=512", "enforce_eager=true", "dtype=bfloat16", "x=[1, 2]"]
    assert engine_options(words) == {
        "max_model_len": 512,
        "enforce_eager": True,
        "dtype": "bfloat16",
        "x": [1, 2],
    }
    with pytest.raises(ParameterInvalid, match="NAME=VALUE"):
        engine_options(["max_model_len"])


def test_engine_without_lora_differs_in_nothing_else(tmp_path: Path) -> None:
    subject = prepare(Requested("tiny", rank=4), 2, tmp_path, tmp_path, Told())
    adapters, modules = adapters_of(subject.adapters), BaseModules.read(subject.base)
    plan = plan_of(subject.base, modules, adapters, {"max_loras": 2})
    on, off = dict(plan.options), dict(without_lora(plan).options)
    assert on.pop("enable_lora") is True
    assert {name for name in on if name not in off} == {
        "max_lora_rank",
        "max_loras",
        "max_cpu_loras",
    }
    assert off == {name: on[name] for name in off}
