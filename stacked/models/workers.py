"""Worker processes, and calls to them: started, bounded in time, ended, and started again.

A process is a group of processes of its own, with no environment, files or network of the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from stacked.core import ModelFiles, Runtime
from stacked.engine.machine import CORES, VISIBLE, memory, visible
from stacked.errors import (
    EngineDead,
    EngineStartFailed,
    ModelFailed,
    ModelTooSlow,
    StackedError,
)
from stacked.models.worker import FRAME, MOST_ANSWER, ONE_BY_ONE

# The worker's modules without the package around them, which the interpreter need not be able to
# import. Its directory is not a place to import from: code has modules of such names too.
_MAIN = """
import sys, types
package = sys.modules["stacked"] = types.ModuleType("stacked")
package.__path__ = [sys.argv[1]]
from stacked.models.worker import main
main()
"""
_ENVIRONMENT = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PATH", VISIBLE)
# Arenas of malloc for each thread would keep memory that models have freed.
_SET = {"MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1"}
# A process may map this much beyond the machine's memory: libraries, and stacks of its threads.
_ADDRESSES = 16 * 1024**3
_START_SECONDS = 60.0
LOAD_SECONDS = 120.0
# After its deadline a call may end by itself, as those of ONNX do; otherwise its process is ended.
_GRACE_SECONDS = 2.0
_MOST_HEAD = 1024**2


class Kind(NamedTuple):
    """What the models of one process have in common."""

    runtime: Runtime
    user: str
    """Whom the process runs as, "" for the server's user."""
    code: str = ""
    python: str = ""
    cards: tuple[int, ...] = ()
    """The GPUs that the process sees, by their numbers here; () for all."""

    @classmethod
    def of(cls, files: ModelFiles, user: str) -> Kind:
        """A model with a score.py of its own is code of its own."""
        runtime, code = files.runtime, files.code
        if code is not None:
            return cls(runtime, user, str(code.path), code.python, files.cards)
        path = str(files.path) if runtime is Runtime.SCORE else ""
        return cls(runtime, user, path, cards=files.cards)


class _Pending(NamedTuple):
    do: str
    number: int
    answer: asyncio.Future[tuple[dict[str, Any], bytes]]


class Worker:
    """One process. Make one with `await Worker.start(...)`; it has ended when `ended` is done."""

    def __init__(
        self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter, threads: int
    ) -> None:
        self.pid = process.pid
        self.loaded: dict[int, dict[str, Any]] = {}
        """What the process reported of each model that it holds, by number."""
        self.loading = asyncio.Lock()
        self.suspects: tuple[int, ...] = ()
        """After the end: the models that were being loaded or answering, and may have caused it."""
        self.reason = ""
        self.ending = False
        self.ended: asyncio.Task[None]
        self.replaced = asyncio.Event()
        """Set when the next one is being started in its place."""
        self._process, self._writer, self._threads = process, writer, threads
        self._pending: dict[int, _Pending] = {}
        self._calls = itertools.count(1)

    @classmethod
    async def start(cls, kind: Kind, processes: int) -> Worker:
        """Start a process, one of so many. Raises EngineStartFailed."""
        threads = max(1, len(CORES) // processes)
        python = kind.python or sys.executable
        ours, theirs = socket.socketpair()
        try:
            process = await _process(kind, python, theirs, threads)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException as error:
            ours.close()  # at which a process that has begun ends
            if isinstance(error, OSError):
                raise EngineStartFailed(f"{python} does not start: {error}") from error
            raise
        finally:
            theirs.close()
        worker = cls(process, writer, 1 if kind.runtime in ONE_BY_ONE else threads)
        worker.ended = asyncio.create_task(worker._run(reader))
        try:
            await worker.call("ping", _START_SECONDS)
        except BaseException as error:
            await worker.end()
            if isinstance(error, EngineDead | ModelTooSlow):
                reason = f"{python} does not start as a worker: {error}"
                raise EngineStartFailed(reason) from error
            raise
        return worker

    @property
    def waiting(self) -> int:
        """How many calls are not answered yet."""
        return len(self._pending)

    async def call(
        self, do: str, seconds: float, body: bytes = b"", number: int = 0, **head: Any
    ) -> tuple[dict[str, Any], bytes]:
        """One call and its answer. Raises what the worker reports, EngineDead, ModelTooSlow."""
        call, answer = next(self._calls), asyncio.get_running_loop().create_future()
        self._pending[call] = _Pending(do, number, answer)
        try:
            self._send({"call": call, "do": do, "number": number, **head}, body)
            done, _ = await asyncio.wait([answer], timeout=seconds)
            if not done:
                self._cancel(call)
                done, _ = await asyncio.wait([answer], timeout=_GRACE_SECONDS)
            if not done:
                sentence = f"no answer in {seconds:.0f} s; its process was ended"
                self.kill(sentence, number)
                raise ModelTooSlow(sentence)
            reply, body = answer.result()
        except asyncio.CancelledError:
            self._cancel(call)
            raise
        finally:
            self._pending.pop(call, None)
        if "error" in reply:
            raise reported(reply["error"], reply["message"])
        return reply, body

    def kill(self, reason: str, *suspects: int) -> None:
        """End the process and what it has started; `suspects` are why."""
        self.suspects, self.reason = self.suspects or suspects, self.reason or reason
        self.ending = True
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """End the process, and wait until it has. Idempotent."""
        self.kill("it was stopped", 0)
        await asyncio.wait([self.ended])

    def _cancel(self, call: int) -> None:
        with contextlib.suppress(EngineDead):
            self._send({"do": "cancel", "call": call})

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        if self.ending:
            raise self._death()
        text = json.dumps(head).encode()
        self._writer.writelines([FRAME.pack(len(text), len(body)), text, body])

    async def _run(self, reader: asyncio.StreamReader) -> None:
        exited = asyncio.ensure_future(self._process.wait())
        reading = asyncio.ensure_future(self._answers(reader))
        # Its children may have the socket open when it is gone.
        await asyncio.wait([exited, reading], return_when=asyncio.FIRST_COMPLETED)
        self.kill("", *{each.number for each in self._begun()})
        reading.cancel()
        await asyncio.wait([exited, reading])
        code = self._process.returncode or 0
        self.reason = self.reason or (f"signal {-code}" if code < 0 else f"exit code {code}")
        self._writer.close()
        for each in self._pending.values():
            if not each.answer.done():
                each.answer.set_exception(self._death())

    async def _answers(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError, KeyError, TypeError):
            while True:
                lengths = FRAME.unpack(await reader.readexactly(FRAME.size))
                if lengths[0] > _MOST_HEAD or lengths[1] > MOST_ANSWER:
                    return  # what writes there is not the worker
                head = json.loads(await reader.readexactly(lengths[0]))
                body = await reader.readexactly(lengths[1])
                pending = self._pending.get(head["call"])
                if pending is not None and not pending.answer.done():
                    pending.answer.set_result((head, body))

    def _begun(self) -> list[_Pending]:
        """Those that the process works on: threads take calls in the order of their arrival."""
        loads = [each for each in self._pending.values() if each.do == "load"]
        others = [each for each in self._pending.values() if each.do != "load"]
        return [*loads[:1], *others[: self._threads]]

    def _death(self) -> EngineDead:
        return EngineDead(
            f"the process of this model ended ({self.reason}); the request is safe to repeat"
        )


async def _process(
    kind: Kind, python: str, theirs: socket.socket, threads: int
) -> asyncio.subprocess.Process:
    """Raises OSError, EngineStartFailed."""
    alone = await asyncio.to_thread(_without_network)
    given = (theirs.fileno(), os.getpid(), memory()[0] + _ADDRESSES)
    passed = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    pinned = {VISIBLE: visible(kind.cards)} if kind.cards else {}
    more = (kind.runtime.value, kind.code, threads)
    return await asyncio.create_subprocess_exec(
        *(*_as_user(kind.user), *alone, python, "-I", "-B", "-u", "-c", _MAIN),
        *map(str, (Path(__file__).parents[1], *given, *more)),
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=passed | pinned | _SET,
        cwd="/",
        start_new_session=True,
    )


def _as_user(name: str) -> tuple[str, ...]:
    """A prefix of a command that runs as a user, with nothing that the server may do besides."""
    if not name:
        return ()
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise EngineStartFailed(f"models.user: there is no user {name!r} here") from error
    ids = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    return ("setpriv", *ids, "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")


@lru_cache(maxsize=1)
def _without_network() -> tuple[str, ...]:
    """A prefix of a command that has no network, () where users may not make namespaces."""
    command = ("unshare", "--user", "--map-current-user", "--net")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if subprocess.run([*command, "true"], capture_output=True, timeout=5).returncode == 0:
            return command
    return ()


def reported(code: str, message: str) -> StackedError:
    """What a worker reports, as the error of that code."""
    kinds = {each.code: each for each in StackedError.tree()}
    return kinds.get(code, ModelFailed)(message)
