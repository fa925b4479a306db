"""A separate process that runs untrusted chat templates; see `child.py`.

It is started on first use, and again after a template has ended it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from stacked.errors import ChatTemplateInvalid

_SCRIPT = Path(__file__).with_name("child.py")
# In addition to the limit on processor time, which a busy machine gives out slowly.
_WAIT_SECONDS = 30.0
# What Python and Jinja need; a template's process gets nothing else of the environment.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class Look:
    """Properties of a template. `plain`: why it refuses a message by a user, or None.

    `late_system`: why it refuses a system message that does not come first.
    """

    variables: frozenset[str]
    plain: str | None
    late_system: str | None


class Sandbox:
    """One process. Calls from any thread block and take turns. Close it at the end."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def look(self, template: str) -> Look:
        """Raises ChatTemplateInvalid if it cannot be parsed or exceeds a limit."""
        reply = self._ask({"template": template})
        return Look(frozenset(reply["variables"]), reply["plain"], reply["late_system"])

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Raises ChatTemplateInvalid with the template's own reason, or the limit it exceeded."""
        return str(self._ask({"template": template, "values": values})["text"])

    def close(self) -> None:
        """End the process. Closing twice is allowed; a later call starts another one."""
        with self._turn:
            self._end()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        request = json.dumps(question, default=_plain).encode("ascii")
        with self._turn:
            if self._running is None or self._running[0].poll() is not None:
                self._end()
                self._running = _started()
            try:
                reply = _exchange(*self._running, request)
            except BaseException:
                self._end()
                raise
        if (reason := reply.get("error")) is not None:
            raise ChatTemplateInvalid(str(reason))
        return reply

    def _end(self) -> None:
        if self._running is not None:
            process, pipe = self._running
            process.kill()
            process.wait()
            pipe.close()
            self._running = None


@lru_cache(maxsize=128)
def look_once(template: str) -> Look:
    """`Sandbox.look` in a process of its own; results are cached.

    So a template that is only examined does not delay requests.
    """
    with Sandbox() as sandbox:
        return sandbox.look(template)


def _started() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_SCRIPT), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
    return process, ours


def _exchange(process: subprocess.Popen[bytes], pipe: Connection, request: bytes) -> dict[str, Any]:
    try:
        pipe.send_bytes(request)
        if not pipe.poll(_WAIT_SECONDS):
            raise ChatTemplateInvalid(f"no prompt was made within {_WAIT_SECONDS:.0f} s")
        reply: dict[str, Any] = json.loads(pipe.recv_bytes())
    except (EOFError, OSError) as error:
        raise ChatTemplateInvalid(_ending(process)) from error
    return reply


def _ending(process: subprocess.Popen[bytes]) -> str:
    """Why the process has ended: mostly its own timer."""
    code = process.wait()
    if code == -signal.SIGPROF:
        return "the template takes too long"
    return f"the template ended the process that runs it ({code})"


def _plain(value: Any) -> Any:
    """vLLM leaves iterators in messages that came through pydantic."""
    return list(value)
