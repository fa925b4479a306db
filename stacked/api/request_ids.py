"""The id of the current request: the client's or a new one, put before its log lines.

It must not know what a request is for.
"""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar
from typing import Any

HEADER = "opc-request-id"

# A request is a task of its own, and so is this variable's value.
_current: ContextVar[str] = ContextVar("request_id", default="")

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


def in_log_lines(*, prefixed: bool = True) -> None:
    """Give every record that is logged for a request its id, `prefixed` in its text. Idempotent."""
    made = logging.getLogRecordFactory()
    if getattr(made, "with_request_id", False):
        return

    def with_id(*args: Any, **more: Any) -> logging.LogRecord:
        record = made(*args, **more)
        if id := _current.get():
            record.request_id = id
            # In front of the message, as the formats are not all ours: vLLM has its own.
            if prefixed:
                shown = id.replace("%", "%%") if record.args else id
                record.msg = f"[{shown}] {record.msg}"
        return record

    with_id.with_request_id = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(with_id)
