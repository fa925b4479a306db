"""The id of the current request: the client's or a new one, put before its log lines.

It must not know what a request is for.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from traceback import format_tb
from typing import Any

HEADER = "opc-request-id"
VLLMS = "x-request-id"
"""The header that vLLM makes the id of an answer of; OpenAI's clients know it too."""

# A request is a task of its own, and so is this variable's value.
_current: ContextVar[str] = ContextVar("request_id", default="")

# Whether the request has prompts, which the logs must not have.
_held: ContextVar[bool] = ContextVar("holds_content", default=False)
_MOST_CAUSES = 5

# Safe in a header and in a log line; without spaces, so that it stays one word there.
_FIT = re.compile(r"[!-~]{1,256}")


def begin(given: str | None) -> str:
    """The id of a new request: the client's if it is valid, otherwise a new one."""
    id = given if given is not None and _FIT.fullmatch(given) else uuid.uuid4().hex.upper()
    _current.set(id)
    return id


def current() -> str:
    """The id of the request that this code runs for; empty outside of one."""
    return _current.get()


def hold_content() -> None:
    """This request has content that is not to be logged."""
    _held.set(True)


def in_log_lines(*, prefixed: bool = True, content: bool = False) -> None:
    """Give every record that is logged for a request its id, `prefixed` in its text. Idempotent.

    Unless `content` may be logged, what libraries quote of a request to a model is left out: what
    vLLM puts into its messages, and the messages of exceptions.
    """
    made = logging.getLogRecordFactory()
    if getattr(made, "with_request_id", False):
        return

    def with_id(*args: Any, **more: Any) -> logging.LogRecord:
        record = made(*args, **more)
        if _held.get() and not content:
            _leave_out(record)
        if id := _current.get():
            record.request_id = id
            # In front of the message, as the formats are not all ours: vLLM has its own.
            if prefixed:
                shown = id.replace("%", "%%") if record.args else id
                record.msg = f"[{shown}] {record.msg}"
        return record

    with_id.with_request_id = True  # type: ignore[attr-defined]  # marks it as installed
    logging.setLogRecordFactory(with_id)


def _leave_out(record: logging.LogRecord) -> None:
    if record.name.startswith("vllm."):
        args = record.args or ()
        if isinstance(args, tuple) and args:
            record.args = tuple(each if isinstance(each, int | float) else "…" for each in args)
        else:  # it may have been put into the text itself
            record.msg, record.args = str(record.msg).partition(":")[0], ()
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = "\n".join(_frames(record.exc_info[1]))


def _frames(error: BaseException | None) -> Iterator[str]:
    """Where an exception and its causes were raised, without what they say."""
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield "".join(["Traceback:\n", *format_tb(error.__traceback__), type(error).__name__])
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
