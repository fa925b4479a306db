"""Why an engine did not start: the first error that any of its processes met.

vLLM's processes report to each other only that something failed, and log the cause. While an
engine starts, each of them also writes the errors it logs to one file, which the process that
starts the engine reads if the start fails.

Relies on: its loggers are below the one called ``vllm``, and a process that
fails logs the exception before it ends; every process calls ``orphans.end_with_parent``.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from pathlib import Path

from pydantic import ValidationError

_PLACE = "STACKED_START_ERRORS"
_LONGEST = 400  # characters: a cause becomes part of one sentence
# Python's first line of an error that it prints. vLLM looks at a model's class in a process of its
# own, and raises the text that it printed.
_PRINTED = "Traceback (most recent call last):"
# Types that add nothing to their message.
_PLAIN = (ValueError, RuntimeError, AssertionError, NotImplementedError)


class Causes:
    """The errors of one start. Processes that are started within the block record theirs."""

    def __init__(self) -> None:
        file, path = tempfile.mkstemp(prefix="stacked-start-")
        os.close(file)
        self._path = Path(path)
        self._own = _Notes(path, thread=threading.get_ident())

    def __enter__(self) -> Causes:
        os.environ[_PLACE] = str(self._path)
        logging.getLogger("vllm").addHandler(self._own)
        return self

    def __exit__(self, *error: object) -> None:
        os.environ.pop(_PLACE, None)
        logging.getLogger("vllm").removeHandler(self._own)

    def first(self) -> str | None:
        """The first error that was recorded, in one sentence."""
        try:
            line, *_ = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return None
        return str(json.loads(line))

    def close(self) -> None:
        """The start is over; later errors are only in the engine's log."""
        self._path.unlink(missing_ok=True)


def listen() -> None:
    """Record this process's errors if it belongs to a start. Idempotent."""
    path, logger = os.environ.get(_PLACE), logging.getLogger("vllm")
    if path and not any(isinstance(each, _Notes) for each in logger.handlers):
        logger.addHandler(_Notes(path))


class _Notes(logging.Handler):
    """Appends exceptions that are logged as errors to a file, as long as the file exists."""

    def __init__(self, path: str, thread: int | None = None) -> None:
        super().__init__(logging.ERROR)
        self._place = path
        self._thread = thread

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or self._thread not in (None, record.thread):
            return
        line = json.dumps(sentence(error)) + "\n"
        try:
            file = os.open(self._place, os.O_WRONLY | os.O_APPEND)  # one write: lines stay whole
        except OSError:
            return
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def sentence(error: BaseException) -> str:
    """The root cause of an exception in one line: the first of several, the cause of one.

    If another process printed it, the last line is the error.
    """
    lines = _lines(error)
    if _PRINTED in lines:
        return lines[-1][:_LONGEST]
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        inner = first.get("ctx", {}).get("error")
        text = sentence(inner) if isinstance(inner, Exception) else first["msg"]
        return ": ".join([*map(str, first["loc"]), text])
    if error.__cause__ is not None:
        return sentence(error.__cause__)
    kind = type(error).__name__
    if not lines:
        return kind
    return lines[0][:_LONGEST] if type(error) in _PLAIN else f"{kind}: {lines[0][:_LONGEST]}"


def first_line(error: BaseException) -> str:
    """An exception's message in one line; its type if it has none."""
    return next(iter(_lines(error)), type(error).__name__)[:_LONGEST]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def missing_package(base: str) -> str | None:
    """In a sentence, the missing package that vLLM's class for a base needs, or None.

    vLLM looks at the class in a separate process, which reports the error as text; this imports it
    here. That takes seconds, so only call it after a start has failed.
    """
    from vllm import ModelRegistry

    config = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    for architecture in config.get("architectures") or ():
        known = ModelRegistry.models.get(architecture)
        try:
            if known is not None:
                known.load_model_cls()
        except ModuleNotFoundError as error:
            name = str(error.name).partition(".")[0]
            return (
                f"{architecture} needs the Python package {name}, which is not installed; install "
                f"its build for this machine's torch (CPU: uv pip install {name} --torch-backend "
                "cpu)"
            )
        except Exception:  # noqa: BLE001  any other fault has been reported
            continue
    return None
