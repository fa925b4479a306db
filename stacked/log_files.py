"""The files that a server's log lines go to, each bounded: one for the engine, one for requests.

`access` and `predict` logs of a deployment's `categoryLogDetails` are files of their own, named by
the ids there. It must not know what is served or how lines are formed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

from stacked.errors import StackedError

CATEGORIES = ("access", "predict")

logger = logging.getLogger("stacked.logs")

# A log has at most this many bytes, and so many older files of that size.
MOST_BYTES = 16 * 1024**2
_OLDER = 4
_SECONDS = 0.5
_LONGEST = 1024**2
# A full disk takes a short line now and then: without losses for so long, it has room again.
_QUIET_SECONDS = 5.0
# Lines of requests that wait for a standard output that nobody reads: beyond these, the oldest go.
_MOST_WAITING = 20_000

Ids = Callable[[], Mapping[str, str]]
"""The log ids of what is served, by category: `access`, `predict`. From any thread."""


def logs_dir(data_dir: Path) -> Path:
    return data_dir / "logs"


def log_of(data_dir: Path, category: str, id: str) -> Path:
    """The file of a log id, which a client has chosen."""
    return logs_dir(data_dir) / category / f"{quote(id, safe='')[:200]}.log"


class LineFile:
    """A file that whole lines are appended to; when it is full, `name` becomes `name.1` and so on.

    Lines that cannot be written are lost, whole. From any thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        """How many lines have been since it was last looked at."""
        self.fault: OSError | None = None
        """Why the last one of those did."""
        self._file: int | None = None
        self._size = 0
        self._lock = threading.Lock()

    def write(self, lines: bytes) -> None:
        with self._lock:
            try:
                self._append(lines)
            except OSError as error:
                self.lost, self.fault = self.lost + 1, error

    def _append(self, lines: bytes) -> None:
        file = self._opened()
        if self._size and self._size + len(lines) > MOST_BYTES:
            self._rotate()
            file = self._opened()
        written = os.write(file, lines)
        if written < len(lines):  # a disk that is full now: a part of a line would spoil the next
            os.ftruncate(file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _opened(self) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            self._size = os.fstat(self._file).st_size
        return self._file

    def _rotate(self) -> None:
        self._close()
        for number in range(_OLDER, 0, -1):
            newer = older(self.path, number - 1) if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older(self.path, number))

    def close(self) -> None:
        """It opens again when it is written to."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = None, 0


def older(path: Path, number: int) -> Path:
    """The name of a rotated file."""
    return path.with_name(f"{path.name}.{number}")


class LogFiles:
    """The logs of one server process: `begin`, use, `close`.

    What is written to the engine's log is also written to the `predict` log, if there is one, and
    with `out` every line is written to that file descriptor, as an object.
    """

    def __init__(self, data_dir: Path, engine: Path, out: int | None = None) -> None:
        self.engine = engine
        self._data_dir = data_dir
        self._out = out
        self._access = LineFile(logs_dir(data_dir) / "access.log")
        self._predict: LineFile | None = None
        self._losses = _Losses()
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._ids: Ids = dict
        self._ending = threading.Event()
        self._tending = threading.Thread(target=self._tend, name="stacked-logs", daemon=True)
        self._engine = engine.open("rb")
        self._part = b""

    @property
    def paths(self) -> dict[str, Path]:
        """Where the lines go now, by what they are."""
        found = {"engine": self.engine, "access": self._access.path}
        return found | ({"predict": self._predict.path} if self._predict else {})

    def begin(self, ids: Ids) -> None:
        self._ids = ids
        self._tending.start()

    def add_request(self, line: str) -> None:
        """Write the line of a request."""
        data = f"{line}\n".encode()
        self._access.write(data)
        if self._out is not None:
            self._waiting.append(data)

    def close(self) -> None:
        """Write what is left. Idempotent."""
        self._ending.set()
        if self._tending.is_alive():
            self._tending.join(timeout=5.0)  # standard output may be blocked

    def _tend(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_SECONDS)
            try:
                with contextlib.suppress(StackedError):  # without records, all stays as it is
                    self._choose(self._ids())
                self._copy()
                self._bound()
                self._losses.report([self._access, *filter(None, [self._predict])])
            except Exception:  # logs must not end because one turn failed
                logger.exception("the logs could not be tended")

    def _choose(self, ids: Mapping[str, str]) -> None:
        """Have lines go to the files of these ids from now on."""
        access = self._of(ids, "access") or logs_dir(self._data_dir) / "access.log"
        if access != self._access.path:
            before, self._access = self._access, LineFile(access)
            before.close()
        predict = self._of(ids, "predict")
        if predict != (self._predict.path if self._predict else None):
            if self._predict is not None:
                self._predict.close()
            self._predict = LineFile(predict) if predict else None

    def _of(self, ids: Mapping[str, str], category: str) -> Path | None:
        id = ids.get(category)
        return log_of(self._data_dir, category, id) if id else None

    def _copy(self) -> None:
        """Pass on what is new in the engine's log, as whole lines."""
        if self._predict is None and self._out is None:
            self._engine.seek(0, os.SEEK_END)
        for part in iter(partial(self._engine.readline, _LONGEST), b""):
            self._part += part
            if part.endswith(b"\n") or len(self._part) >= _LONGEST:
                self._pass_on(self._part)
                self._part = b""
        while self._waiting:
            self._print(self._waiting.popleft())

    def _pass_on(self, line: bytes) -> None:
        if self._predict is not None:
            self._predict.write(line)
        if self._out is not None:
            self._print(line if _is_object(line) else _as_object(line))

    def _print(self, line: bytes) -> None:
        try:
            while line and self._out is not None:
                line = line[os.write(self._out, line) :]
        except OSError:  # nobody reads it any more
            self._out = None

    def _bound(self) -> None:
        """Empty the engine's log when it is full, keeping a copy.

        Its name cannot be given to another file, as running processes write to this one. What they
        write between the copy and the cut is lost.
        """
        if os.fstat(self._engine.fileno()).st_size <= MOST_BYTES:
            return
        with contextlib.suppress(OSError):  # a full disk: the log is cut all the same
            shutil.copyfile(self.engine, older(self.engine, 1))
        os.truncate(self.engine, 0)
        self._engine.seek(0)


class _Losses:
    """Says once that lines are lost, and once that no more are: also on the terminal."""

    def __init__(self) -> None:
        self._count, self._last = 0, 0.0

    def report(self, files: Iterable[LineFile]) -> None:
        now = time.monotonic()
        for file in files:
            if file.lost:
                if not self._count:
                    _say(f"lines of {file.path} are lost: {file.fault}. Serving goes on")
                self._count, self._last = self._count + file.lost, now
                file.lost = 0
        if self._count and now > self._last + _QUIET_SECONDS:
            _say(f"log lines are written again; {self._count} were lost")
            self._count = 0


class RequestLines(logging.Handler):
    """Has log files write the lines of requests.

    Not the files themselves: vLLM's set-up of logging closes every handler that there is.
    """

    def __init__(self, files: LogFiles, formatter: logging.Formatter) -> None:
        super().__init__()
        self._files = files
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self._files.add_request(self.format(record))


def _say(message: str) -> None:
    logger.warning("%s", message)  # where the disk is full, that is lost too
    print(message, file=sys.stderr, flush=True)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _as_object(line: bytes) -> bytes:
    """A line that was printed, and not logged, as an object."""
    said = line.decode(errors="replace").rstrip()
    return json.dumps({"logger": "output", "message": said}).encode() + b"\n"
