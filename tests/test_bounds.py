"""The table of limits on one request: each row on each field that it bounds, at its edge."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.config import LimitsConfig
from stacked.errors import ParameterOverLimit
from stacked.serving.bounds import check_bounds

SMALL = LimitsConfig(
    prompt_characters=20,
    sequences_per_request=6,
    n=3,
    max_tokens=50,
    logprobs=5,
    messages=2,
    content_parts=3,
    stop=2,
    stop_characters=4,
    token_choices=3,
    tools=2,
    schema_bytes=64,
)


def chat(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


def parts(count: int) -> list[dict[str, str]]:
    return [{"type": "text", "text": "x"}] * count


# A body at the limit, one over it, and the limit's name.
EDGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"n": 3}, {"n": 4}, "n"),
    ({"n": "3"}, {"n": "4"}, "n"),
    ({"n": 3}, {"n": 10**400}, "n"),
    ({"n": 3}, {"n": "inf"}, "n"),
    ({"best_of": 3}, {"best_of": 4.0}, "n"),
    ({"max_tokens": 50}, {"max_tokens": 51}, "max_tokens"),
    ({"max_completion_tokens": 50}, {"max_completion_tokens": 51}, "max_tokens"),
    ({"max_output_tokens": 50}, {"max_output_tokens": 51}, "max_tokens"),
    ({"min_tokens": 50}, {"min_tokens": 51}, "max_tokens"),
    (
        {"sampling_params": {"max_tokens": 50}},
        {"sampling_params": {"max_tokens": 51}},
        "max_tokens",
    ),
    ({"chat_request": {"n": 3}}, {"chat_request": {"n": 4}}, "n"),
    ({"logprobs": 5}, {"logprobs": 6}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 5}, {"logprobs": True, "top_logprobs": 6}, "logprobs"),
    ({"prompt_logprobs": 5}, {"prompt_logprobs": 6}, "logprobs"),
    ({"messages": chat("a", "b")}, {"messages": chat("a", "b", "c")}, "messages"),
    ({"input": chat("a", "b")}, {"input": chat("a", "b", "c")}, "messages"),
    (
        {"messages": [chat("a"), chat("b")]},
        {"messages": [chat("a"), chat("b"), chat("c")]},
        "messages",
    ),
    (
        {"messages": chat(parts(2), parts(1))},
        {"messages": chat(parts(2), parts(2))},
        "content_parts",
    ),
    ({"prompt": "x" * 20}, {"prompt": "x" * 21}, "prompt_characters"),
    ({"prompt": ["x" * 10] * 2}, {"prompt": ["x" * 7] * 3}, "prompt_characters"),
    ({"prompt": [1] * 20}, {"prompt": [1] * 21}, "prompt_characters"),
    ({"input": [[1] * 10] * 2}, {"input": [[1] * 11] * 2}, "prompt_characters"),
    ({"messages": chat("x" * 20)}, {"messages": chat("x" * 21)}, "prompt_characters"),
    (
        {"input": [{"type": "function_call_output", "output": "x" * 20}]},
        {"input": [{"type": "function_call_output", "output": "x" * 21}]},
        "prompt_characters",
    ),
    ({"system": "x" * 20}, {"system": "x" * 21}, "prompt_characters"),
    ({"documents": ["x" * 10] * 2}, {"documents": ["x" * 11] * 2}, "prompt_characters"),
    ({"prompt": ["x"] * 6}, {"prompt": ["x"] * 7}, "sequences_per_request"),
    ({"prompt": ["x"] * 2, "n": 3}, {"prompt": ["x"] * 3, "n": 3}, "sequences_per_request"),
    ({"input": [[1]] * 6}, {"input": [[1]] * 7}, "sequences_per_request"),
    ({"documents": ["x"] * 6}, {"documents": ["x"] * 7}, "sequences_per_request"),
    ({"texts": ["x"] * 6}, {"texts": ["x"] * 7}, "sequences_per_request"),
    ({"text_2": ["x"] * 6}, {"text_2": ["x"] * 7}, "sequences_per_request"),
    ({"stop": ["a", "b"]}, {"stop": ["a", "b", "c"]}, "stop"),
    ({"stop": "aaaa"}, {"stop": "aaaaa"}, "stop_characters"),
    ({"stop_sequences": ["aaaa"]}, {"stop_sequences": ["b", "aaaaa"]}, "stop_characters"),
    ({"bad_words": ["aaaa"]}, {"bad_words": ["aaaaa"]}, "stop_characters"),
    (
        {"logit_bias": {"1": 1, "2": 1, "3": 1}},
        {"logit_bias": {str(i): 1 for i in range(4)}},
        "token_choices",
    ),
    ({"allowed_token_ids": [1] * 3}, {"allowed_token_ids": [1] * 4}, "token_choices"),
    ({"stop_token_ids": [1] * 3}, {"stop_token_ids": [1] * 4}, "token_choices"),
    ({"tools": [{}] * 2}, {"tools": [{}] * 3}, "tools"),
    ({"tools": [{"a": "x" * 54}]}, {"tools": [{"a": "x" * 55}]}, "schema_bytes"),
    (
        {"structured_outputs": {"regex": "x" * 52}},
        {"structured_outputs": {"regex": "x" * 53}},
        "schema_bytes",
    ),
    ({"response_format": {"a": "x" * 56}}, {"response_format": {"a": "x" * 57}}, "schema_bytes"),
    ({"text": {"format": "x" * 51}}, {"text": {"format": "x" * 52}}, "schema_bytes"),
]


@pytest.mark.parametrize(("fits", "over", "limit"), EDGES)
def test_a_limit_is_refused_by_name_from_its_edge_on(
    fits: dict[str, Any], over: dict[str, Any], limit: str
) -> None:
    check_bounds(fits, SMALL)
    with pytest.raises(ParameterOverLimit, match=f"limit of .*{limit}") as refused:
        check_bounds(over, SMALL)
    assert refused.value.limit == limit


def test_every_limit_of_a_request_has_an_edge_here() -> None:
    assert {limit for _, _, limit in EDGES} == SMALL.model_fields_set


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({}, 1),
        ({"prompt": "x"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["x", "y"], "n": 4}, 8),
        ({"input": chat("a", "b", "c")}, 1),
        ({"messages": chat("a", "b"), "n": 2}, 2),
        ({"messages": [chat("a"), chat("b")]}, 2),
        ({"text_1": "q", "text_2": ["a", "b", "c"]}, 3),
        ({"prompt": []}, 1),
    ],
)
def test_a_sequence_is_one_prompt_and_one_answer(body: dict[str, Any], count: int) -> None:
    assert check_bounds(body, LimitsConfig()) == count


def test_no_request_is_larger_than_a_share_of_the_server() -> None:
    limits = LimitsConfig(sequences=8, share=0.5)
    assert check_bounds({"prompt": ["x"] * 4}, limits) == 4
    with pytest.raises(ParameterOverLimit):
        check_bounds({"prompt": ["x"] * 5}, limits)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
FIELDS = sorted({name for pair in EDGES for body in pair[:2] for name in body})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_json_is_counted_or_refused(body: dict[str, Any]) -> None:
    with contextlib.suppress(ParameterOverLimit):
        assert 1 <= check_bounds(body, SMALL) <= 6
