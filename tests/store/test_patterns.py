"""Which pattern is for which module: PEFT's own rule, whatever the expression, in bounded time."""

from __future__ import annotations

import re
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacked.errors import AdapterConfigInvalid
from stacked.store import patterns
from stacked.store.patterns import first_matches, is_plain

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
NAMES = [f"model.layers.{layer}.{name}" for layer in range(126) for name in ATTENTION + MLP]


def by_peft(keys: list[str], names: list[str]) -> dict[str, str]:
    """What PEFT's get_pattern_key finds, restated: importing PEFT takes many seconds."""
    found = {}
    for name in names:
        for key in keys:
            if re.match(rf"(.*\.)?({key})$", name):
                found[name] = key
                break
    return found


def test_the_rule_is_peft_s() -> None:
    spec = find_spec("peft")
    if spec is None or spec.origin is None:
        pytest.skip("PEFT is not installed")
    source = (Path(spec.origin).parent / "utils" / "other.py").read_text()
    rule = source.partition("def get_pattern_key")[2].partition("\ndef ")[0]
    assert 're.match(rf"(.*\\.)?({key})$", key_to_match)' in rule


@pytest.mark.parametrize(
    "keys",
    [
        ["layers.1.self_attn.q_proj", "q_proj", "proj", "mlp"],
        ["self.attn.q.proj", r"self_attn\.k_proj"],  # an unescaped dot is any character
        ["q_proj|k_proj", "^layers", "^model.layers.3.mlp.up_proj"],
        [r"model\.layers\.(0|2)\..*(q|k)_proj", r".*\.layers\.\d+\.mlp\.(?!up).*"],
        [".*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?", ".*"],
        ["layers.9)|(model.*q_proj"],  # nonsense, but what PEFT makes of it
        [r"(.*)\.(\d+)\.mlp\.up_proj", "(?:(?:q|k)_proj)+", "[qk]_proj"],
    ],
)
def test_the_first_match_is_peft_s(keys: list[str]) -> None:
    names = [*NAMES[:35], "q_proj", "lm_head", "model.embed_tokens"]
    assert first_matches("rank_pattern", keys, names) == by_peft(keys, names)


parts = st.lists(st.sampled_from(["q", "k", "layers", "0", "qk"]), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(parts.map(".".join) | parts.map("|".join) | parts.map(r"\.".join), unique=True),
    st.lists(parts.map(".".join), unique=True),
)
def test_plain_patterns_match_as_peft_s(keys: list[str], names: list[str]) -> None:
    assert all(map(is_plain, keys))
    assert first_matches("rank_pattern", keys, names) == by_peft(keys, names)


def test_a_pattern_for_each_module_of_126_layers_takes_no_time() -> None:
    began = time.monotonic()
    assert first_matches("rank_pattern", NAMES, NAMES) == {name: name for name in NAMES}
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "hostile", ["(a*)*b|(.*.*)*x", r"(.+\.)+(\w+_?)+!", "(?:.*)*.*.*.*.*.*.*!"]
)
def test_an_expression_that_never_ends_is_refused_in_time(
    hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(AdapterConfigInvalid, match="rank_pattern: 1 patterns take more than 1 s"):
        first_matches("rank_pattern", [hostile], ["model." + "a." * 400 + "q_proj"])
    assert time.monotonic() - began < 5


def test_an_expression_that_takes_all_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_BYTES", 48 << 20)
    with pytest.raises(AdapterConfigInvalid, match="or 48 MiB to match 1 module names"):
        first_matches("rank_pattern", ["(?:a|bc)*" * 40_000], ["q_proj"])


def test_many_plain_patterns_are_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.2)
    many = [f"q_proj{number}" for number in range(20_000)]
    with pytest.raises(AdapterConfigInvalid, match="20000 patterns take more than"):
        first_matches("alpha_pattern", many, NAMES)


@pytest.mark.parametrize("wrong", ["(", "*", "(?P<x>a)(?P<x>b)", "(" * 5000 + ")" * 5000])
def test_what_is_no_expression_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(AdapterConfigInvalid, match="is not a pattern") as caught:
        first_matches("alpha_pattern", ["q_proj", wrong], ["q_proj"])
    assert repr(wrong)[:50] in str(caught.value)
    assert len(str(caught.value)) < 1000
