"""adapter_config.json: what is refused, by class and with the value named."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stacked.errors import AdapterConfigInvalid, AdapterUnsupported, RankRefused
from stacked.store.peft_config import RANK_LADDER, PeftConfig, check_rank, parse_config, rung
from tests.store.small import lora_config


def parsed(**changes: Any) -> PeftConfig:
    return parse_config(json.dumps(lora_config(**changes)).encode())


def test_a_plain_lora_is_read() -> None:
    config = parsed()
    assert (config.rank, config.alpha, config.base) == (4, 8.0, "small")
    assert config.targets == ("down_proj", "q_proj", "v_proj")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 0}, '"r" is 0'),
        ({"r": -8}, '"r" is -8'),
        ({"r": "8"}, '"r" is "8"'),
        ({"r": True}, '"r" is true'),
        ({"r": 8.0}, '"r" is 8.0'),
        ({"r": None}, '"r" is missing'),
        ({"lora_alpha": "16"}, '"lora_alpha" is "16"'),
        ({"lora_alpha": None}, '"lora_alpha" is missing'),
        ({"lora_alpha": 10**400}, "expected at most 1000000 either way"),
        ({"lora_alpha": -1000001}, "-1000001; expected at most 1000000 either way"),
        ({"target_modules": None}, '"target_modules" is missing'),
        ({"target_modules": []}, '"target_modules" is []'),
        ({"target_modules": [1]}, '"target_modules" is [1]'),
        ({"peft_type": None}, '"peft_type"'),
        ({"peft_type": None, "fine_tune_type": "lora"}, "MLX"),
        ({"use_rslora": "false"}, 'use_rslora is "false"'),
        ({"use_dora": 1}, "use_dora is 1"),
        ({"rank_pattern": [8]}, '"rank_pattern" is [8]'),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern 'q_proj' is 0"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern 'q_proj'"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern 'q_proj'"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern 'q_proj'"),
    ],
)
def test_what_peft_does_not_write_is_invalid(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterConfigInvalid) as caught:
        parsed(**changes)
    assert said in str(caught.value)
    assert caught.value.code == "AdapterConfigInvalid"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"LORA"',
        b"\xff\xfe",
        b'{"r": NaN}',
        b'{"r": 1e999}',
        b'{"r": 8, "r": 16}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_what_is_not_one_json_object_is_invalid(data: bytes) -> None:
    with pytest.raises(AdapterConfigInvalid):
        parse_config(data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"peft_type": "ADALORA"}, "'ADALORA'"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, '"all"'),
        ({"bias": "lora_only"}, '"lora_only"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"modules_to_save": ["score"]}, "modules_to_save"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"arrow_config": {"top_k": 1}}, "Arrow"),
        ({"kasa_config": {"beta": 1.0}}, "KaSA"),
        ({"monteclora_config": {"num_samples": 4}}, "MonteCLoRA"),
        ({"velora_config": {"num_groups": 4}}, "VeLoRA"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"init_lora_weights": "pissa"}, '"pissa"'),
        ({"init_lora_weights": "pissa_niter_16"}, '"pissa_niter_16"'),
        ({"init_lora_weights": "olora"}, '"olora"'),
        ({"init_lora_weights": "corda"}, '"corda"'),
        ({"init_lora_weights": "loftq"}, '"loftq"'),
        ({"use_tomorrows_lora": True}, "'use_tomorrows_lora'"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdapterUnsupported) as caught:
        parsed(**changes)
    assert said in str(caught.value)
    assert caught.value.code == "AdapterUnsupported"


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"lora_alpha": 0.5},
        {"target_modules": ".*_proj"},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "Eva", "eva_config": {"rho": 2.0}},
        {"rank_pattern": {"q_proj": 8, r"^model\.layers\.\d+\.mlp.down_proj": 2}},
        {"alpha_pattern": {"q_proj": 32}},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"modules_to_save": []},
        {"loftq_config": {}},
    ],
)
def test_what_vllm_serves_is_served(changes: dict[str, Any]) -> None:
    assert parsed(**changes).rank == 4


def test_keys_of_other_tools_are_told() -> None:
    (warning,) = parsed(my_tool={"a": 1}).warnings
    assert "'my_tool'" in warning


def test_the_first_pattern_that_matches_the_end_of_a_name_gives_the_rank() -> None:
    config = parsed(rank_pattern={"layers.0.self_attn.q_proj": 16, "q_proj": 2, "proj": 64})
    first, second, third = (
        f"model.layers.{end}" for end in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.v_proj")
    )
    # "proj" is not a whole part
    assert config.ranks([first, second, third]) == {first: 16, second: 2, third: 4}
    assert config.max_rank == 64  # vLLM counts every pattern


def test_a_rank_above_the_engines_is_refused_with_the_option_to_raise() -> None:
    check_rank(parsed(r=16), 16)
    check_rank(parsed(r=512), None)
    with pytest.raises(RankRefused) as caught:
        check_rank(parsed(rank_pattern={"q_proj": 40}), 16)
    assert "rank 40" in str(caught.value)
    assert "max_lora_rank 16" in str(caught.value)
    assert "max_lora_rank to 64" in str(caught.value)
    assert caught.value.code == "RankRefused"


def test_a_rank_above_vllms_ladder_is_refused_whatever_the_engine_says() -> None:
    with pytest.raises(RankRefused, match="rank 513 is above 512"):
        check_rank(parsed(r=513), None)


def test_the_ladder_is_vllms() -> None:
    spec = find_spec("vllm")  # its source, because importing it takes many seconds
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / "config" / "lora.py").read_text()
    found = re.search(r"MaxLoRARanks = Literal\[([\d, ]+)\]", source)
    assert found is not None
    assert tuple(map(int, found[1].split(","))) == RANK_LADDER


def test_the_rung_of_a_rank_is_the_next_one_up() -> None:
    assert [rung(rank) for rank in (1, 2, 8, 9, 300, 512)] == [1, 8, 8, 16, 320, 512]
