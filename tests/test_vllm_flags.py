"""`PARAMS` is read as vLLM's own parser would read it, without vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.errors import ConfigInvalid
from stacked.vllm_flags import read_flags


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("--max-model-len 4096", {"max_model_len": 4096}),
        ("--max_model_len 4096", {"max_model_len": 4096}),
        ("--max-model-len=4096", {"max_model_len": 4096}),
        ("--enable_lora --max-lora-rank 64", {"enable_lora": True, "max_lora_rank": 64}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--gpu-memory-utilization 0.9", {"gpu_memory_utilization": 0.9}),
        ("--max-model-len 4k --dtype float32", {"max_model_len": "4k", "dtype": "float32"}),
        ("--seed -1", {"seed": -1}),
        ("-tp 2 -O3", {"tensor_parallel_size": 2, "optimization_level": 3}),
        ("-tp=2", {"tensor_parallel_size": 2}),
        ("--allowed-origins a b", {"allowed_origins": ["a", "b"]}),
        ("--max-loras 1 --max-loras 4", {"max_loras": 4}),
        ("--revision 1.10-rc", {"revision": "1.10-rc"}),
        (
            """--hf-overrides '{"a": 1}' --chat-template 'my file.jinja'""",
            {"hf_overrides": '{"a": 1}', "chat_template": "my file.jinja"},
        ),
        (
            "--compilation-config.level 3 --compilation-config.backend eager",
            {"compilation_config": {"level": 3, "backend": "eager"}},
        ),
    ],
)
def test_flags_become_option_names(text: str, options: dict[str, Any]) -> None:
    assert read_flags(text, where="PARAMS") == options


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("max-model-len 4096", "max-model-len"),
        ("--chat-template 'open", "quotation"),
        ("--a 1 --a.b 2", "--a.b"),
    ],
)
def test_what_is_not_a_command_line_is_refused(text: str, word: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        read_flags(text, where="PARAMS")
    assert str(refused.value).startswith("PARAMS: ")
    assert word in str(refused.value)
