"""This process itself: where its output goes.

It must not know what is served.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from stacked.config import LogForm
from stacked.log_files import LogFiles, RequestLines, logs_dir
from stacked.logs import JsonLines, TextLines, vllm_logging
from stacked.retention.collect import old_logs
from stacked.steps import Step, sentence
from stacked.store.disk import usable

# More are never needed, and some programs walk through all that there may be.
_MOST_FILES = 65536


class EngineLog(NamedTuple):
    """The file that file descriptors 1 and 2 go to; `terminal` is where 1 went before."""

    path: Path
    terminal: int


def raise_file_limit() -> int:
    """Allow this process as many open files as it may have; their number."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    allowed = max(now, allowed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return allowed


def engine_log(data_dir: Path, most: int, form: LogForm = "text") -> EngineLog:
    """Send what vLLM prints, here and in the processes it starts, to the newest of `most` files.

    With `form` json, what is logged is an object a line, in vLLM's processes too.

    File descriptors 1 and 2 are redirected for the rest of this process's life, because engine
    processes and native code write to them, some while the interpreter ends. Python's
    `sys.stderr` keeps the terminal, for our own messages. Raises StoreUnusable.
    """
    path = logs_dir(data_dir) / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with usable(data_dir, "the data directory"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in old_logs(data_dir, most - 1):
            old.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    # Loggers of libraries that set up none of their own; Python would print them on `sys.stderr`.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter(form))
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk is not reported once for each line
    log = EngineLog(path, terminal)
    if form == "json":
        _have_vllm_log_objects(path.parent)
    return log


def request_log(data_dir: Path, log: EngineLog, form: LogForm, *, on: bool) -> LogFiles:
    """Begin the log of requests, and tend the files. `close` it at the end."""
    files = LogFiles(data_dir, log.path, log.terminal if form == "json" else None)
    logger = logging.getLogger("stacked.access")
    logger.setLevel(logging.INFO if on else logging.CRITICAL)
    logger.propagate = False
    logger.addHandler(RequestLines(files, formatter(form)))
    return files


def formatter(form: LogForm) -> logging.Formatter:
    return JsonLines() if form == "json" else TextLines()


def _have_vllm_log_objects(directory: Path) -> None:
    """By vLLM's own setting, unless the user has made it."""
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO")
    path = directory / "vllm-logging.json"
    path.write_text(json.dumps(vllm_logging(level)), encoding="utf-8")
    os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(path))


class Logged:
    """A Progress whose steps are log records, for a terminal that a program reads."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("stacked.start")
        self._logger.setLevel(logging.INFO)
        self._step: Step | None = None

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        if step is not self._step:
            self._step = step
            self._logger.info("%s", sentence(step, detail))

    def note(self, text: str) -> None:
        self._logger.info("%s", text)

    def finish(self, text: str) -> None:
        self._logger.info("%s", text)
