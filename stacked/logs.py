"""What may be shown of text from elsewhere, and the forms of log lines: one for each record.

Nothing else of the package is imported: engine processes use this too.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

# Control and format characters and line ends of every script, which end a line, or colour or hide
# a part of it where it is shown; and lone surrogates, which no encoding has.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
_LONGEST_URL = 500
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_WORD = re.compile(r"[!#-<>-\[\]-~]+")


def one_line(text: str) -> str:
    """The text with its unsafe characters escaped."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown_url(text: str) -> str:
    """A URL without user, password, query and fragment, which may be secrets; other text as it is.

    For messages: its unsafe characters are escaped, and it is cut.
    """
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "the address"
    host = parts.netloc.rpartition("@")[2]
    shown = one_line(urlunsplit((parts.scheme, host, parts.path, "", "")))
    return shown if len(shown) <= _LONGEST_URL else f"{shown[:_LONGEST_URL]}…"


def shown_text(text: str) -> str:
    """One line, with `shown_url` of the URLs in it."""
    return one_line(_URL.sub(lambda found: shown_url(found[0]), text))


def _word(value: object) -> str:
    """A value of the text form: as it is where that is one word, otherwise quoted."""
    text = str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)


class TextLines(logging.Formatter):
    """`time LEVEL logger message`, or the fields of a record that has some as `name=value`.

    The lines of a traceback follow, indented: none of them can be taken for a record.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        said = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
        said = said or one_line(record.getMessage())
        line = f"{_time(record)} {record.levelname} {record.name} {said}"
        trace = _trace(self, record)
        return "\n    ".join([line, *map(one_line, trace.splitlines())]) if trace else line


class JsonLines(logging.Formatter):
    """An object for each record: time, level, logger, message or fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        tree = {"time": _time(record), "level": record.levelname, "logger": record.name}
        if fields := getattr(record, "fields", None):
            return json.dumps(tree | fields)
        if id := getattr(record, "request_id", None):
            tree["id"] = id
        tree["message"] = record.getMessage()
        process: str | None = getattr(record, "vllm_process_name", record.processName)
        if process and process != "MainProcess":
            tree["process"] = process
        if trace := _trace(self, record):
            tree["traceback"] = trace
        return json.dumps(tree)


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """What follows the message: an exception, a stack."""
    raised = record.exc_text or ""
    if record.exc_info and not raised:
        raised = formatter.formatException(record.exc_info)
    return "\n".join(filter(None, [raised, record.stack_info]))


def vllm_logging(level: str) -> dict[str, Any]:
    """What `VLLM_LOGGING_CONFIG_PATH` names, so that vLLM's processes write objects too."""
    out = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "stacked.logs.JsonLines"}},
        "handlers": {"out": out},
        "loggers": {"vllm": {"handlers": ["out"], "level": level, "propagate": False}},
    }
