"""LangChain: `ChatOpenAI`, `OpenAI`, `OpenAIEmbeddings`, and `ChatAnthropic` of the same server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import openai
from asking import API_KEY, ASKED, BASE_URL, UNIT_TOOL, URL, question, tell
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

SERVER = {"base_url": BASE_URL, "api_key": API_KEY}


class Ticket(BaseModel):
    """A support ticket."""

    team: Literal["billing", "support"]
    urgent: bool


def chat(model: str, **more: object) -> ChatOpenAI:
    return ChatOpenAI(model=model, temperature=0, max_tokens=60, **SERVER, **more)


# Else it cuts texts by a table of tokens that it fetches.
embeddings = OpenAIEmbeddings(model="sql", check_embedding_ctx_length=False, **SERVER)
sql = chat("sql")
whole = sql.invoke(question("sql"))
tool = chat("triage").bind_tools([UNIT_TOOL], tool_choice="set_unit").invoke(ASKED["unit"])
ticket = chat("triage").with_structured_output(Ticket, method="json_schema")
by_tool = chat("triage").with_structured_output(Ticket, method="function_calling")


def status(call: Callable[[], object]) -> int | str:
    """Of the client's exception, whose classes are subclasses of openai's."""
    try:
        return f"nothing, but {call()!r}"
    except openai.APIStatusError as error:
        return error.status_code


async def leave_a_stream() -> bool:
    async for piece in chat("pirate").astream(question("pirate")):
        if piece.content:
            return True
    return False


tell(
    chat=whole.content,
    chat_model=whole.response_metadata["model_name"],
    tokens=whole.usage_metadata["total_tokens"],
    streamed="".join(piece.content for piece in sql.stream(question("sql"))),
    batch=[each.content for each in sql.batch([question("sql"), question("sql")])],
    response=chat("sql", use_responses_api=True).invoke(question("sql")).text,
    tool=tool.tool_calls[0]["name"],
    tool_unit=tool.tool_calls[0]["args"]["unit"],
    parsed=ticket.invoke(question("triage")).model_dump(),
    parsed_by_tool=by_tool.invoke(question("triage")).model_dump(),
    completions=OpenAI(model="base", temperature=0, max_tokens=5, **SERVER).batch(
        [ASKED["france"], "The capital of Italy is"]
    ),
    anthropic=ChatAnthropic(
        model="sql", temperature=0, max_tokens=60, base_url=URL, api_key=API_KEY
    )
    .invoke(question("sql"))
    .content,
    left=asyncio.run(leave_a_stream()),
    unknown_key=status(lambda: chat("nope").invoke("x")),
    bad_parameter=status(lambda: chat("sql", top_p=7).invoke("x")),
    embeddings=status(lambda: embeddings.embed_query("x")),
)
