"""What the clients send, as it was on the wire, on the suite's own server: the status of each.

Recorded between the clients of `test_clients.py` and a server, then shortened: their headers, and
every field that only one of them sends. Values are asked of the clients themselves, there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.engine

JSON = {"content-type": "application/json"}
STAINLESS = {
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
OPENAI = {
    **(JSON | STAINLESS),
    "accept": "application/json",
    "authorization": "Bearer none",
    "user-agent": "OpenAI/Python 3.57.0",
    "x-stainless-lang": "python",
    "x-stainless-async": "false",
    "x-stainless-raw-response": "true",
}
OPENAI_NODE = {
    **(JSON | STAINLESS),
    "accept": "application/json",
    "accept-language": "*",
    "authorization": "Bearer none",
    "sec-fetch-mode": "cors",
    "user-agent": "OpenAI/JS 6.49.0",
    "x-stainless-lang": "js",
    "x-stainless-helper-method": "stream",
    "x-stainless-timeout": "0",
}
AZURE = {name: value for name, value in OPENAI.items() if name != "authorization"} | {
    "api-key": "none",
    "user-agent": "AzureOpenAI/Python 3.57.0",
}
ANTHROPIC = {
    **(JSON | STAINLESS),
    "anthropic-version": "2026-10-21",
    "authorization": "Bearer none",
    "user-agent": "Anthropic/Python 2.14.0",
    "x-api-key": "none",
    "x-stainless-timeout": "NOT_GIVEN",
}
AI_SDK = {
    **JSON,
    "authorization": "Bearer none",
    "user-agent": "ai/6.0.326 ai-sdk/provider-utils/4.0.65 runtime/node.js/v20.20.2",
}
LM_EVAL = {**JSON, "authorization": "Bearer", "user-agent": "python-requests/2.34.2"}
OCI = {**JSON, "route": "/v1/chat/completions", "user-agent": "Python/3.11 aiohttp/3.14.5"}

CHAT, TEXT, RESPONSES, MESSAGES = (
    f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "messages")
)
AZURE_A = "/openai/deployments/a"
X = [{"role": "user", "content": "x"}]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["unit"],
    "additionalProperties": False,
    "$schema": "http://json-schema.org/draft-07/schema#",
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": None}}
CALLED = [
    *X,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "1"},
]
# All that langchain-community's classes for OCI send, asked for or not.
LANGCHAIN_OCI = {
    "stop": None,
    "stream": False,
    "early_stopping": False,
    "frequency_penalty": 0.0,
    "ignore_eos": False,
    "length_penalty": 1.0,
    "min_p": 0.0,
    "min_tokens": 0,
    "n": 1,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "top_k": -1,
    "top_p": 1.0,
    "use_beam_search": False,
}


@dataclass(frozen=True)
class Row:
    """One recorded request; `said` is a part of the error, or of the answer's text."""

    name: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    said: str = ""


ROWS = [
    Row(
        "labels", CHAT, OPENAI, {"messages": X, "user": "u", "store": False, "metadata": {"a": "b"}}
    ),
    Row("service tier", CHAT, OPENAI, {"messages": X, "service_tier": "auto", "logit_bias": {}}),
    Row("effort", CHAT, OPENAI, {"messages": X, "reasoning_effort": "minimal"}),
    Row(
        "nulls", CHAT, OPENAI, {"messages": X, "stop": None, "seed": None, "n": None, "tools": None}
    ),
    Row("no function", CHAT, OPENAI, {"messages": X, "function_call": "none"}),
    Row("n", CHAT, OPENAI, {"messages": X, "n": 2, "temperature": 1.0, "stream": False}),
    Row(
        "developer and parts",
        CHAT,
        OPENAI_NODE,
        {
            "messages": [
                {"role": "developer", "content": "Be short."},
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
            ],
            "max_completion_tokens": 3,
        },
    ),
    Row(
        "usage at the end",
        CHAT,
        OPENAI_NODE,
        {"messages": X, "stream": True, "stream_options": {"include_usage": True}},
        said='"usage":{',
    ),
    Row("log-probabilities", CHAT, OPENAI, {"messages": X, "logprobs": True, "top_logprobs": 5}),
    Row(
        "forced tool",
        CHAT,
        OPENAI,
        {
            "messages": X,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
        },
    ),
    Row("tool at will", CHAT, AI_SDK, {"messages": X, "tools": [TOOL], "tool_choice": "auto"}),
    Row("tool's answer", CHAT, AI_SDK, {"messages": CALLED, "tools": [TOOL]}),
    Row(
        "schema",
        CHAT,
        AI_SDK,
        {
            "messages": X,
            "max_tokens": 40,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "response", "schema": SCHEMA, "strict": True},
            },
        },
        said="unit",
    ),
    Row(
        "tokens in a batch",
        TEXT,
        LM_EVAL,
        {"prompt": [[5, 6, 7], [5, 6]], "echo": True, "logprobs": 1, "seed": 1234, "max_tokens": 1},
        said="token_logprobs",
    ),
    Row("tokens", TEXT, LM_EVAL, {"prompt": [5, 6, 7], "stop": ["\n", "<|im_end|>"]}),
    Row(
        "batch",
        TEXT,
        OPENAI,
        {"prompt": ["x", "y"], "n": 1, "top_p": 1, "logprobs": None, "seed": None, "best_of": 1},
    ),
    Row(
        "items",
        RESPONSES,
        OPENAI,
        {
            "input": [{"type": "message", "role": "user", "content": "x"}],
            "max_output_tokens": 3,
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "text": {"format": {"type": "text"}},
        },
    ),
    Row(
        "cached system",
        MESSAGES,
        ANTHROPIC,
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "system": [
                {"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}
            ],
            "metadata": {"user_id": "u"},
        },
    ),
    Row("events", MESSAGES, ANTHROPIC, {"messages": X, "stream": True}, said="message_stop"),
    Row("beta", f"{MESSAGES}?beta=true", ANTHROPIC, {"messages": X, "stop_sequences": [";"]}),
    Row("deployment", f"{AZURE_A}/chat/completions?api-version=2024-10-21", AZURE, {"messages": X}),
    Row(
        "deployment of another name",
        f"{AZURE_A}/completions?api-version=2024-10-21",
        AZURE,
        {"prompt": "x", "model": "b"},
        400,
        "path",
    ),
    Row("OCI", "/predict", OCI, {"messages": X} | LANGCHAIN_OCI),
    Row(
        "OCI, streamed",
        "/predict",
        {**OCI, "enable-streaming": "true", "accept": "text/event-stream"},
        {"messages": X, "stream": True, "early_stopping": False},
        said="data: [DONE]",
    ),
    Row("unknown key", CHAT, OPENAI, {"messages": X, "model": "nope"}, 404, "nope"),
    Row("unknown key, events", MESSAGES, ANTHROPIC, {"messages": X, "model": "nope"}, 404, "nope"),
    Row("too large", CHAT, OPENAI, {"messages": X, "top_p": 7}, 400, "top_p"),
    Row("misplaced", CHAT, OPENAI, {"messages": X, "extra_body": {}}, 400, "extra_body"),
    Row(
        "picture",
        CHAT,
        OPENAI,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
                    ],
                }
            ]
        },
        400,
        "multimodal",
    ),
    Row(
        "embeddings",
        "/v1/embeddings",
        OPENAI,
        {"input": ["x"], "encoding_format": "base64"},
        404,
        "/v1/embeddings",
    ),
]


def _limit(row: Row) -> dict[str, int]:
    """Each path has its own name for the most tokens that it may answer."""
    if row.path in (RESPONSES, "/v1/embeddings") or "max_completion_tokens" in row.body:
        return {}
    return {"max_tokens": 3}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_recorded_request(http: httpx.Client, row: Row) -> None:
    defaults = {"model": "a", "temperature": 0} | _limit(row)
    response = http.post(row.path, json=defaults | row.body, headers=row.headers)
    assert response.status_code == row.status, response.text
    assert row.said in response.text
    if row.status == 200:
        assert response.headers["model-key"] == "a"
    else:
        assert response.json()["error"]["message"]


def test_recorded_model_requests(http: httpx.Client) -> None:
    listed = http.get("/v1/models", headers=OPENAI_NODE).json()["data"]
    one = http.get("/v1/models/a", headers=OPENAI_NODE)
    assert one.status_code == 200, one.text
    assert one.json()["id"] == "a"
    assert one.json()["object"] == "model"
    assert one.json()["id"] in [model["id"] for model in listed]
    unknown = http.get("/v1/models/nope", headers=OPENAI_NODE)
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"]


def test_recorded_count_of_tokens(http: httpx.Client) -> None:
    said = http.post(
        f"{MESSAGES}/count_tokens", headers=ANTHROPIC, json={"model": "a", "messages": X}
    )
    assert said.json()["input_tokens"] > 1
