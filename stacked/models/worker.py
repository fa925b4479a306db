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
_MOST_REASON = 500
_PR_SET_PDEATHSIG = 1


class Worker:
    """Models by number, and the threads that answer."""

    def __init__(self, connection: socket.socket, runtime: str, code: str, threads: int) -> None:
        self._socket, self._runtime, self._code = connection, runtime, code
        self._threads = threads
        self._models: dict[int, Any] = {}
        self._calls: dict[int, Call] = {}
        self._sending = threading.Lock()
        self._loads = ThreadPoolExecutor(1)
        # A score.py need not be safe for threads; more processes answer more at once.
        alone = runtime in ("score", "data")
        self._answers = ThreadPoolExecutor(1 if alone else threads)

    def serve(self) -> None:
        """Return when the other end is closed."""
        while True:
            lengths = self._receive(FRAME.size)
            if lengths is None:
                return
            head, body = (self._receive(length) for length in FRAME.unpack(lengths))
            if head is None or body is None:
                return
            self._begin(json.loads(head), body)

    def _begin(self, head: dict[str, Any], body: bytes) -> None:
        number, do = head["call"], head["do"]
        begun = self._calls.get(number)
        if do != "cancel":
            call = self._calls[number] = Call()
            pool = self._loads if do in ("load", "unload") else self._answers
            call.work = pool.submit(self._run, head, body, call)
        elif begun and begun.cancel():  # no thread had taken it
            late = Fault("ModelTooSlow", "others before it took all of its time")
            self._end(number, refusal(late, "", Call()), b"")

    def _end(self, number: int, head: dict[str, Any], body: bytes) -> None:
        del self._calls[number]
        self._send({"call": number, **head}, body)

    def _run(self, head: dict[str, Any], body: bytes, call: Call) -> None:
        try:
            answer = self._done(head, body, call)
            if len(answer[1]) > MOST_ANSWER:
                sentence = f"an answer of {len(answer[1]):,} bytes; at most {MOST_ANSWER:,}"
                raise Fault("ModelAnswerInvalid", sentence)
        except BaseException as error:  # noqa: BLE001 - code of others, which may also call exit()
            answer = refusal(error, head["do"], call), b""
        self._end(head["call"], *answer)

    def _done(self, head: dict[str, Any], body: bytes, call: Call) -> tuple[dict[str, Any], bytes]:
        do, number = head["do"], head["number"]
        if do == "answer":
            return {}, self._models[number].answer(body, head, call)
        if do == "try":
            runtimes.try_out(self._models[number], head["path"], head, call)
        elif do == "load":
            return self._load(number, head["path"]), b""
        elif do == "unload":
            self._unload(head["numbers"])
        return {}, b""

    def _load(self, number: int, path: str) -> dict[str, Any]:
        before = _resident()
        model = runtimes.load(self._runtime, path, self._code or path, self._threads)
        self._models[number] = model
        inputs, outputs = ([spec.described() for spec in s] for s in (model.inputs, model.outputs))
        return {"bytes": max(0, _resident() - before), "inputs": inputs, "outputs": outputs}

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
        _trim()

    def _receive(self, count: int) -> bytes | None:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            some = self._socket.recv_into(view[got:])
            if not some:
                return None
            got += some
        return bytes(data)

    def _send(self, head: dict[str, Any], body: bytes) -> None:
        text = json.dumps(head).encode()
        with self._sending:
            self._socket.sendall(FRAME.pack(len(text), len(body)) + text + body)


def refusal(error: BaseException, doing: str, call: Call) -> dict[str, str]:
    code = {"load": "EngineLoadFailed", "ping": "EngineStartFailed"}.get(doing, "ModelFailed")
    # TorchScript's errors are tracebacks, whose reason is the last line.
    lines = [line for line in str(error).splitlines() if line] or [""]
    reason = " … ".join(dict.fromkeys((lines[0][:_MOST_REASON], lines[-1][:_MOST_REASON])))
    if call.cancelled:
        code, reason = "ModelTooSlow", reason or "ended at its deadline"
    elif isinstance(error, Fault):
        code = error.code
    else:
        if isinstance(error, ModuleNotFoundError) and error.name in ("onnxruntime", "openvino"):
            code = "EngineNotInstalled"
            extra = {"onnxruntime": "models", "openvino": "savedmodel"}[error.name]
            reason = f"{reason}; install it: pip install 'stacked[{extra}]'"
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        place = f" ({os.path.basename(last.filename)}, line {last.lineno})" if last else ""
        reason = f"{type(error).__name__}: {reason}{place}"
    return {"error": code, "message": reason}


def _resident() -> int:
    """Bytes of this process that are in memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def confine(parent: int, memory: int) -> None:
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
    confine(parent, memory)
    os.set_inheritable(fd, False)
    runtime, code, threads = sys.argv[5], sys.argv[6], int(sys.argv[7])
    try:
        Worker(socket.socket(fileno=fd), runtime, code, threads).serve()
    finally:
        os._exit(0)  # without waiting for threads, which may never end
