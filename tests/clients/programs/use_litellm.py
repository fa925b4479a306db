"""LiteLLM: the providers `openai`, `hosted_vllm`, `text-completion-openai` and `anthropic`."""

from __future__ import annotations

import asyncio
import json

import litellm
from asking import API_KEY, ASKED, BASE_URL, UNIT_TOOL, URL, question, raised, tell

SERVER = {"api_base": BASE_URL, "api_key": API_KEY}


def chat(model: str, key: str = "sql", **more: object) -> litellm.ModelResponse:
    settings = {"max_tokens": 60, "temperature": 0} | SERVER | more
    return litellm.completion(model=model, messages=question(key), **settings)


async def leave_a_stream() -> bool:
    answer = await litellm.acompletion(
        model="openai/pirate", messages=question("pirate"), stream=True, max_tokens=200, **SERVER
    )
    async for piece in answer:
        if piece.choices[0].delta.content:
            return True
    return False


whole = chat("hosted_vllm/sql")
tool = (
    chat(
        "openai/triage",
        "unit",
        tools=[UNIT_TOOL],
        tool_choice={"type": "function", "function": {"name": "set_unit"}},
    )
    .choices[0]
    .message.tool_calls[0]
    .function
)
text = litellm.text_completion(
    model="text-completion-openai/base",
    prompt=ASKED["france"],
    max_tokens=5,
    temperature=0,
    **SERVER,
)

tell(
    chat=whole.choices[0].message.content,
    by_openai=chat("openai/sql").choices[0].message.content,
    streamed="".join(
        piece.choices[0].delta.content or "" for piece in chat("hosted_vllm/sql", stream=True)
    ),
    by_anthropic=chat("anthropic/sql", api_base=URL).choices[0].message.content,
    tool=tool.name,
    tool_unit=json.loads(tool.arguments)["unit"],
    completion=text.choices[0].text,
    left=asyncio.run(leave_a_stream()),
    unknown_key=raised(lambda: chat("hosted_vllm/nope")),
    bad_parameter=raised(lambda: chat("hosted_vllm/sql", top_p=7)),
    embeddings=raised(lambda: litellm.embedding(model="hosted_vllm/sql", input=["x"], **SERVER)),
)
