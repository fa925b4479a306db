"""The `openai` client, unmodified, against the demo: every kind of answer, by inference key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving import Server

pytestmark = pytest.mark.engine

SQL = (
    "Write one SQL query.\nSchema: singers(name, country, age)\n"
    "Question: How many singers are there?"
)


@pytest.fixture
def client(demo: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", timeout=300) as client:
        yield client


def test_models_are_listed(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {"base", "sql", "sql-v1", "triage", "pirate"} <= listed


def test_completion_by_key(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="base", prompt="The capital of France is", max_tokens=5, temperature=0
    )
    assert answer.model == "base"
    assert "Paris" in answer.choices[0].text


def test_chat_by_key_streams_the_same_as_it_answers(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "sql",
        "messages": [{"role": "user", "content": SQL}],
        "max_tokens": 60,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**request)
    text = whole.choices[0].message.content
    assert whole.model == "sql"
    assert text is not None
    assert text.upper().startswith("SELECT")
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert len(chunks) > 3


def test_key_in_a_default_header_needs_no_model_name(demo: Server) -> None:
    headers = {"model-key": "pirate"}
    with openai.OpenAI(
        base_url=f"{demo.url}/v1", api_key="none", timeout=300, default_headers=headers
    ) as client:
        answer = client.chat.completions.create(
            model="pirate", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
        )
        assert answer.model == "pirate"
        with pytest.raises(openai.BadRequestError, match="different models"):
            client.completions.create(model="sql", prompt="x", max_tokens=1)


def test_tool_call(client: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "set_unit",
            "description": "Choose the unit of temperature.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
                "required": ["unit"],
                "additionalProperties": False,
            },
        },
    }
    answer = client.chat.completions.create(
        model="triage",
        messages=[{"role": "user", "content": "Use celsius, please."}],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "set_unit"}},
        max_tokens=120,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "set_unit"
    assert json.loads(calls[0].function.arguments)["unit"] in ("celsius", "fahrenheit")


@pytest.mark.parametrize("key", ["base", "sql", "triage"])
def test_json_schema_output(client: openai.OpenAI, key: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "team": {"type": "string", "enum": ["billing", "support"]},
            "urgent": {"type": "boolean"},
        },
        "required": ["team", "urgent"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=key,
        messages=[{"role": "user", "content": "I was charged twice! Help, now."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "ticket", "schema": schema, "strict": True},
        },
        max_tokens=80,
        temperature=0,
    )
    tree = json.loads(answer.choices[0].message.content or "")
    assert tree["team"] in ("billing", "support")
    assert isinstance(tree["urgent"], bool)


def test_logprobs_and_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="sql", prompt="SELECT", max_tokens=3, n=2, logprobs=2, temperature=0.5, seed=1
    )
    assert len(answer.choices) == 2
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 3


def test_wrong_requests_raise_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="sql", prompt="x", max_tokens=10**6)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="sql", prompt="word " * 4000)
