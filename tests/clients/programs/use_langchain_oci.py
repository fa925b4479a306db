"""LangChain's classes for OCI Data Science: `/predict`, streams by header, errors.

What stands for a signer sends a token; `ads.common.auth` gives real ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asking import API_KEY, ASKED, URL, raised, tell
from langchain_community.chat_models import ChatOCIModelDeployment, ChatOCIModelDeploymentVLLM
from langchain_community.llms import OCIModelDeploymentVLLM


def signed(request: Any) -> Any:
    request.headers["authorization"] = f"Bearer {API_KEY}"
    return request


SERVER = {"endpoint": f"{URL}/predict", "auth": {"signer": signed}}


def chat(model: str = "sql", **more: object) -> ChatOCIModelDeploymentVLLM:
    return ChatOCIModelDeploymentVLLM(model=model, temperature=0, max_tokens=60, **SERVER, **more)


def text(**more: object) -> OCIModelDeploymentVLLM:
    return OCIModelDeploymentVLLM(model="base", temperature=0, max_tokens=5, **SERVER, **more)


async def streamed() -> str:
    pieces = [piece.content async for piece in chat(streaming=True).astream(ASKED["sql"])]
    return "".join(pieces)


by_header = ChatOCIModelDeployment(
    model="sql", default_headers={"model-key": "sql"}, model_kwargs={"temperature": 0}, **SERVER
)

tell(
    chat=chat().invoke(ASKED["sql"]).content,
    streamed="".join(piece.content for piece in chat(streaming=True).stream(ASKED["sql"])),
    streamed_async=asyncio.run(streamed()),
    invoked_async=asyncio.run(chat().ainvoke(ASKED["sql"])).content,
    by_header=by_header.invoke(ASKED["sql"]).content,
    completion=text().invoke(ASKED["france"]),
    completion_streamed="".join(text(streaming=True).stream(ASKED["france"])),
    unknown_key=raised(lambda: chat("nope").invoke("x")),
    bad_parameter=raised(lambda: chat(top_p=7).invoke("x")),
)
