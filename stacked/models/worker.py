"""The process that loads models and answers with them; `workers` starts it and calls it.

Calls and answers go over one socket: two lengths, a head in JSON, a body of bytes. A call for a
model's answer waits for a free thread; loading has a thread of its own, so that answers go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stacked.models import runtimes
from stacked.models.runtimes import Call
from stacked.models.tensors import Fault

FRAME = struct.Struct("!II")
MOST_ANSWER = 64 * 1024**2
"""Bytes of one answer."""
ONE_BY_ONE = ("score", "data")
"""Runtimes whose models answer one request at a time in each process."""
_EXTRAS = {"onnxruntime": "models", "openvino": "savedmodel"}
_MOST_REASON = 500
_PR_SET_PDEATHSIG = 1


class Worker:
    """Models by number, and the threads that load and answer."""

    def __init__(self, connection: socket.socket, runtime: str, code: str, threads: int) -> None:
        self._socket, self._runtime, self._code = connection, runtime, code
        self._threads = threads
        self._models: dict[int, Any] = {}
        self._calls: dict[int, Call] = {}
        self._sending = threading.Lock()
        self._loads = ThreadPoolExecutor(1)
        # A score.py need not be safe for threads; more processes answer more at once.
        self._answers = ThreadPoolExecutor(1 if runtime in ONE_BY_ONE else threads)

    def serve(self) -> None:
        """Return when the other end is closed."""
        reader = self._socket.makefile("rb")
        while True:
            lengths = reader.read(FRAME.size)
            if len(lengths) < FRAME.size:
                return
            head, body = (reader.read(length) for length in FRAME.unpack(lengths))
            self._begin(json.loads(head), body)

    def _begin(self, head: dict[str, Any], body: bytes) -> None:
        number, do = head["call"], head["do"]
        if do == "cancel":
            self._cancel(number)
            return
        call = self._calls[number] = Call(loads=do == "load")
        pool = self._loads if do in ("load", "unload") else self._answers
        call.work = pool.submit(self._run, head, body, call)

    def _cancel(self, number: int) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        if call.cancel():  # no thread had taken it
            self._end(number, _late("others before it took all of its time"), b"")
        elif call.loads:
            self._end(number, _late("no answer in its time"), b"")
            # What hangs cannot be ended; what is loaded next has another thread.
            self._loads = ThreadPoolExecutor(1)

    def _end(self, number: int, head: dict[str, Any], body: bytes) -> bool:
        """Answer a call, unless another thread has."""
        if self._calls.pop(number, None) is None:
            return False
        text = json.dumps({"call": number, **head}).encode()
        with self._sending:
            self._socket.sendall(FRAME.pack(len(text), len(body)) + text + body)
        return True

    def _run(self, head: dict[str, Any], body: bytes, call: Call) -> None:
        do, number = head["do"], head["number"]
        try:
            report, answer = self._done(do, number, head, body, call)
            if len(answer) > MOST_ANSWER:
                sentence = f"an answer of {len(answer):,} bytes; at most {MOST_ANSWER:,}"
                raise Fault("ModelAnswerInvalid", sentence)
        except BaseException as error:  # noqa: BLE001 - code of others, which may also call exit()
            report, answer = refusal(error, do, call), b""
        if not self._end(head["call"], report, answer) and do == "load":
            self._unload([number])

    def _done(
        self, do: str, number: int, head: dict[str, Any], body: bytes, call: Call
    ) -> tuple[dict[str, Any], bytes]:
        if do == "answer":
            return {}, self._models[number].answer(body, head, call)
        if do == "try":
            self._models[number].try_zeros(call)
        elif do == "load":
            return self._load(number, head["path"]), b""
        elif do == "unload":
            self._unload(head["numbers"])
        return {}, b""

    def _load(self, number: int, path: str) -> dict[str, Any]:
        before = _resident()
        model = runtimes.load(self._runtime, path, self._code or path, self._threads)
        self._models[number] = model
        sides = {"inputs": model.inputs, "outputs": model.outputs}
        described = {side: [spec.described() for spec in specs] for side, specs in sides.items()}
        return {"bytes": max(0, _resident() - before), "described": described}

    def _unload(self, numbers: list[int]) -> None:
        for number in numbers:
            model = self._models.pop(number, None)
            try:
                if model is not None:
                    model.unload()
            except BaseException:  # noqa: BLE001 - code of others; the model is gone all the same
                traceback.print_exc()
            del model
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:  # gives freed memory back to the system
            trim(0)


def _late(reason: str) -> dict[str, Any]:
    return {"error": "ModelTooSlow", "message": reason}


def refusal(error: BaseException, doing: str, call: Call) -> dict[str, Any]:
    """Why a call fails, as an answer to it."""
    code = {"load": "EngineLoadFailed", "ping": "EngineStartFailed"}.get(doing, "ModelFailed")
    # TorchScript's errors are tracebacks, whose reason is the last line.
    lines = [line for line in str(error).splitlines() if line] or [""]
    reason = " … ".join(dict.fromkeys((lines[0][:_MOST_REASON], lines[-1][:_MOST_REASON])))
    if call.cancelled:
        code, reason = "ModelTooSlow", reason or "ended at its deadline"
    elif isinstance(error, Fault):
        code = error.code
    else:
        extra = _EXTRAS.get(getattr(error, "name", "") or "")
        if extra and isinstance(error, ModuleNotFoundError):
            code = "EngineNotInstalled"
            reason = f"{reason}; install it: pip install 'stacked[{extra}]'"
        place = "".join(
            f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
            for frame in traceback.extract_tb(error.__traceback__)[-1:]
        )
        reason = f"{type(error).__name__}: {reason}{place}"
    return {"error": code, "message": reason}


def _resident() -> int:
    """Bytes of this process that are in memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _confine(parent: int, memory: int) -> None:
    """End with the parent, be the first to go when memory is short, dump no core."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
        with contextlib.suppress(ValueError, OSError):  # macOS does not have all of them
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    os.umask(0o077)
    os.dup2(2, 1)  # what code prints goes where the log goes


def main() -> None:
    """Arguments: socket, parent's process, memory in bytes, runtime, folder of code, threads."""
    fd, parent, memory = (int(each) for each in sys.argv[2:5])
    _confine(parent, memory)
    os.set_inheritable(fd, False)
    runtime, code, threads = sys.argv[5], sys.argv[6], int(sys.argv[7])
    try:
        Worker(socket.socket(fileno=fd), runtime, code, threads).serve()
    finally:
        os._exit(0)  # without waiting for threads, which may never end
