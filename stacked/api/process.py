"""This process itself: where its output goes, and how it restarts.

It must not know what is served.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from stacked.config import LogForm
from stacked.log_files import LogFiles, RequestLines, logs_dir
from stacked.logs import JsonLines, TextLines, vllm_logging
from stacked.retention.collect import old_logs
from stacked.steps import Step, sentence

# Restarts in a row: `count:seconds since the epoch of the first`, passed on in the environment. An
# engine that keeps dying has a cause that another restart does not remove.
_RESTARTS = "STACKED_RESTARTS"
_MOST_RESTARTS = 3
_WITHIN_SECONDS = 600.0

# More are never needed, and some programs walk through all that there may be.
_MOST_FILES = 65536


@dataclass(frozen=True, slots=True)
class EngineLog:
    """The file that file descriptors 1 and 2 go to; `terminal` is where they went before.

    `environment` is what the process was started with: an engine sets variables of its own,
    including some that configure a container.
    """

    path: Path
    terminal: tuple[int, int]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def may_restart(self) -> bool:
        """Whether to restart: not for the fourth time within ten minutes."""
        count, first = _restarts()
        return count < _MOST_RESTARTS or time.time() - first > _WITHIN_SECONDS

    def restart(self) -> NoReturn:
        """Replace this process by a new one with the same arguments, on the same terminal.

        A new interpreter, because neither vLLM nor torch is sure to start twice in one.
        """
        count, first = _restarts()
        if time.time() - first > _WITHIN_SECONDS:
            count, first = 0, time.time()
        environment = {**self.environment, _RESTARTS: f"{count + 1}:{first:.0f}"}
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(self.terminal, start=1):
            os.dup2(saved, number)
        os.execve(sys.executable, [sys.executable, "-m", "stacked", *sys.argv[1:]], environment)


def _restarts() -> tuple[int, float]:
    count, _, first = os.environ.get(_RESTARTS, "").partition(":")
    if count.isdigit() and first.isdigit():
        return int(count), float(first)
    return 0, 0.0


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
    `sys.stderr` keeps the terminal, for our own messages.
    """
    directory = logs_dir(data_dir)
    directory.mkdir(parents=True, exist_ok=True)
    for old in old_logs(data_dir, most - 1):
        old.unlink(missing_ok=True)
    path = directory / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = (os.dup(1), os.dup(2))
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
        _have_vllm_log_objects(directory)
    return log


def request_log(data_dir: Path, log: EngineLog, form: LogForm, *, on: bool) -> LogFiles:
    """Begin the log of requests, and tend the files. `close` it at the end."""
    files = LogFiles(data_dir, log.path, log.terminal[0] if form == "json" else None)
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
