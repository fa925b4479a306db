"""The digest depends on what an adapter computes, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from stacked.core import Digest, check_digest
from stacked.store.digest import digest_of
from stacked.store.files import WEIGHTS_FILE
from stacked.store.peft_config import parse_config
from tests.store.small import lora_config

WEIGHTS = b"weights"


def digest(tmp_path: Path, config: str | dict[str, Any], weights: bytes = WEIGHTS) -> Digest:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / WEIGHTS_FILE).write_bytes(weights)
    return check_digest(digest_of(parse_config(text.encode()), tmp_path))


def test_formatting_and_the_order_of_keys_and_targets_do_not_matter(tmp_path: Path) -> None:
    config = lora_config()
    turned = dict(reversed(config.items()))
    turned["target_modules"] = list(reversed(config["target_modules"]))
    assert digest(tmp_path, config) == digest(tmp_path, json.dumps(turned, indent=7))


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "/elsewhere"},
        {"revision": "main"},
        {"peft_version": "0.99"},
        {"task_type": "SEQ_2_SEQ_LM"},
        {"inference_mode": False},
        {"auto_mapping": {"base_model_class": "X"}},
        {"base_model_name_or_path": None},
    ],
)
def test_where_an_adapter_comes_from_does_not_matter(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert digest(tmp_path, lora_config()) == digest(tmp_path, lora_config(**changes))


def test_null_is_the_same_as_absent(tmp_path: Path) -> None:
    text = json.dumps({**lora_config(), "modules_to_save": None, "kasa_config": None})
    assert digest(tmp_path, lora_config()) == digest(tmp_path, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 8},
        {"lora_alpha": 9},
        {"use_rslora": True},
        {"target_modules": ["q_proj"]},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
    ],
)
def test_what_changes_the_computation_changes_the_digest(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert digest(tmp_path, lora_config()) != digest(tmp_path, lora_config(**changes))


def test_the_order_of_patterns_matters_because_the_first_match_wins(tmp_path: Path) -> None:
    one = lora_config(rank_pattern={"q_proj": 8, "layers.0.self_attn.q_proj": 2})
    two = lora_config(rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 8})
    assert digest(tmp_path, one) != digest(tmp_path, two)


def test_one_bit_of_the_weights_changes_the_digest(tmp_path: Path) -> None:
    assert digest(tmp_path, lora_config()) != digest(tmp_path, lora_config(), b"weighus")


def test_the_stored_spelling_has_the_same_digest_and_the_same_meaning(tmp_path: Path) -> None:
    config = lora_config(rank_pattern={"q_proj": 8, "a": 2}, my_key="\ud800ä", target_modules="a|b")
    stored = parse_config(json.dumps(config).encode()).stored()
    assert digest(tmp_path, config) == digest(tmp_path, stored.decode())
    assert json.loads(stored) == config
    assert list(json.loads(stored)["rank_pattern"]) == ["q_proj", "a"]


def test_the_definition_written_out_longhand(tmp_path: Path) -> None:
    """Engine names and caches carry digests: whoever changes the definition changes its first line.

    The lengths are what keeps bytes from wandering between files unnoticed.
    """
    config = {"r": 1, "peft_type": "LORA", "target_modules": ["b", "a"], "lora_alpha": 2}
    canonical = b'{"lora_alpha":2,"peft_type":"LORA","r":1,"target_modules":["a","b"]}'
    assert len(canonical) == 68
    expected = hashlib.sha256(
        b"stacked adapter 1\n"
        b"19:adapter_config.json68:" + canonical + b"25:adapter_model.safetensors7:weights"
    )
    assert digest(tmp_path, config) == f"sha256:{expected.hexdigest()}"
    (tmp_path / "tokenizer_config.json").write_bytes(b"{...}")
    expected.update(b"21:tokenizer_config.json5:{...}")
    assert digest(tmp_path, config) == f"sha256:{expected.hexdigest()}"
