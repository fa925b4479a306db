"""vLLM's own parser judges vLLM's own options, and its words are passed on."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.engine.options import parse_options
from stacked.errors import EngineOptionInvalid


def test_options_are_what_vllm_serve_would_see() -> None:
    args = parse_options(
        {
            "max_model_len": "2k",
            "enable-prefix-caching": False,
            "enforce_eager": True,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            "hf_overrides": {"x": 1},
            "enable_lora": True,
            "seed": 3,
            "quantization": None,
        }
    )
    assert args.max_model_len == 2000
    assert args.enable_prefix_caching is False
    assert args.enforce_eager is True
    assert args.hf_overrides == {"x": 1}
    assert args.enable_lora is True
    assert args.seed == 3
    assert args.quantization is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_model_length": 1}, "did you mean max_model_len"),
        ({"max_model_len": "abc"}, "max-model-len"),
        ({"dtype": "float7"}, "invalid choice"),
        ({"max_lora_rank": 17}, "choose from 1, 8, 16"),
        ({"enable_auto_tool_choice": True}, "tool-call-parser"),
    ],
)
def test_wrong_option_is_refused_in_vllms_words(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineOptionInvalid, match=said):
        parse_options(options)
