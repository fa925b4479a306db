"""Processes that a benchmark starts: each in its own session, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stacked.errors import EngineStartFailed

_END_SECONDS = 60.0


@contextmanager
def child(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | BinaryIO | None = None,
    stderr: int | BinaryIO | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run it until the block ends. ^C reaches only this process, which ends it in order."""
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate it, wait, then kill it and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind


class Talk:
    """A child that answers each line of JSON on stdin with one on stdout."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, what: str) -> None:
        self._process, self._log, self._what = process, log, what

    def ask(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Raises EngineStartFailed with the end of its log if it ends or reports a failure."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(said).encode() + b"\n")
            self._process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = {"error": last_words(self._log) or "it ended without a word"}
        if "error" in answer:
            raise EngineStartFailed(f"{self._what}: {answer['error']}")
        return dict(answer)


@contextmanager
def talking(
    command: Sequence[str], log: Path, what: str, environment: Mapping[str, str] | None = None
) -> Iterator[Talk]:
    """A child that answers; it is ended with the block. Its stderr goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as output,
        child(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            environment=environment,
        ) as process,
    ):
        yield Talk(process, log, what)
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_SECONDS)


def last_words(path: Path, count: int = 2000) -> str:
    """The end of a log, to be displayed; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-count:]
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM unwind as ^C does, so that the blocks around children end them."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
