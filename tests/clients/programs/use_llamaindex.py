"""LlamaIndex: `OpenAILike`, chat and completion, streams, structured output, errors."""

from __future__ import annotations

from typing import Literal

from asking import API_KEY, ASKED, BASE_URL, raised, tell
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Ticket(BaseModel):
    """A support ticket."""

    team: Literal["billing", "support"]
    urgent: bool


def llm(model: str, **more: object) -> OpenAILike:
    settings = {"context_window": 1024, "max_tokens": 60, "temperature": 0, "is_chat_model": True}
    return OpenAILike(model=model, api_base=BASE_URL, api_key=API_KEY, **settings | more)


def message(key: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=ASKED[key])]


sql = llm("sql")
ticket = llm("triage", is_function_calling_model=True).as_structured_llm(Ticket)
bad = llm("sql", additional_kwargs={"top_p": 7})

tell(
    chat=sql.chat(message("sql")).message.content,
    streamed="".join(piece.delta or "" for piece in sql.stream_chat(message("sql"))),
    completion=llm("base", is_chat_model=False, max_tokens=5).complete(ASKED["france"]).text,
    parsed=ticket.chat(message("triage")).raw.model_dump(),
    unknown_key=raised(lambda: llm("nope").chat(message("sql"))),
    bad_parameter=raised(lambda: bad.chat(message("sql"))),
)
