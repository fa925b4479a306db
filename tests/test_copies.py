"""What of a request its copy has, and which requests are not copied."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.serving.copies import copy_of, is_greedy

KNOWN = frozenset({"prompt", "messages", "model", "stream", "temperature", "seed", "n", "user"})
CHAT = "/v1/chat/completions"


def test_copy_has_the_prompt_and_parameters_and_nothing_of_the_client() -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0.5,
        "seed": 1,
        "model": "sql",
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "somebody",
        "logprobs": True,
        "priority": -1,
        "ignored_by_the_server": 1,
    }
    assert copy_of(CHAT, body, KNOWN | {"logprobs", "priority", "stream_options"}) == {
        "messages": body["messages"],
        "temperature": 0.5,
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        (CHAT, {"n": 2}),
        (CHAT, {"use_beam_search": True}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "code_interpreter"}]}),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "x", "background": True}),
    ],
)
def test_what_has_several_answers_or_changes_something_is_not_copied(
    path: str, body: dict[str, Any]
) -> None:
    assert copy_of(path, body, KNOWN) is None


@pytest.mark.parametrize("body", [{"n": 1}, {"n": None}, {"tools": [{"type": "function"}]}])
def test_what_has_one_answer_is_copied(body: dict[str, Any]) -> None:
    assert copy_of(CHAT, body, KNOWN) is not None


def test_copy_of_a_response_is_stored_nowhere() -> None:
    body = {"input": "x", "store": True, "tools": []}
    assert copy_of("/v1/responses", body, frozenset({"input", "store", "tools"})) == {
        "input": "x",
        "store": False,
        "tools": [],
    }


@pytest.mark.parametrize(
    ("body", "greedy"),
    [({"temperature": 0}, True), ({"temperature": 0.0, "seed": 1}, True), ({"top_k": 1}, True)]
    + [(body, False) for body in ({}, {"temperature": 0.1}, {"seed": 1}, {"temperature": None})],
)
def test_chance_takes_part_unless_it_is_ruled_out(body: dict[str, Any], greedy: bool) -> None:
    assert is_greedy(body) is greedy
