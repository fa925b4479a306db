"""instructor: pydantic objects by guided JSON, by a forced tool, and from a stream."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
from asking import API_KEY, BASE_URL, question, tell
from instructor import Mode
from instructor.core import InstructorRetryException
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY)


class Ticket(BaseModel):
    """A support ticket."""

    team: Literal["billing", "support"]
    urgent: bool


def ticket(mode: Mode, model: str = "triage") -> Ticket:
    return instructor.from_openai(client, mode=mode).chat.completions.create(
        model=model,
        messages=question("triage"),
        response_model=Ticket,
        max_retries=1,
        max_tokens=80,
        temperature=0,
    )


def last_partial() -> Ticket:
    pieces = instructor.from_openai(client, mode=Mode.JSON_SCHEMA).chat.completions.create_partial(
        model="triage",
        messages=question("triage"),
        response_model=Ticket,
        max_tokens=80,
        temperature=0,
    )
    return list(pieces)[-1]


def unknown_key() -> str:
    """What the client itself raised, which is the first cause of instructor's own exception."""
    try:
        return f"nothing, but {ticket(Mode.JSON_SCHEMA, 'nope')!r}"
    except InstructorRetryException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return type(cause).__name__


tell(
    by_schema=ticket(Mode.JSON_SCHEMA).model_dump(),
    by_tool=ticket(Mode.TOOLS).model_dump(),
    of_base=ticket(Mode.JSON_SCHEMA, "base").model_dump(),
    streamed=last_partial().model_dump(),
    unknown_key=unknown_key(),
)
