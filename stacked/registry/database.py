"""One SQLite file: transactions on it, and its failures as one class of error.

Reads see one snapshot and never wait; writes exclude each other and are on disk when they return.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from stacked.errors import RecordConflict, RegistryUnusable
from stacked.registry.migrations import migrate

# The next step, by SQLite's error code.
_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process is writing to it; stop that one, or try again",
    sqlite3.SQLITE_FULL: "free some space, and try again",
    sqlite3.SQLITE_READONLY: (
        "it may only be read; give it write permission, or choose another data directory"
    ),
    sqlite3.SQLITE_CANTOPEN: "check that its directory is there and may be written",
    sqlite3.SQLITE_CORRUPT: "restore it from a copy, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "it is something else; move it away, or choose another data directory",
}


class Database:
    """The file, open. Every method may be called from any thread; `close` once, at the end."""

    def __init__(self, path: Path, busy_seconds: float) -> None:
        """Make or migrate the file. `busy_seconds`: how long to wait for other processes' writes.

        Raises RegistryUnusable.
        """
        self.path = Path(path).absolute()
        self._closed = False
        # Without it, SQLite would let threads poll for the write lock, and starve some.
        self._writing = threading.Lock()
        with self._failures():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            migrate(self.path, busy_seconds=busy_seconds)
        self._engine = _engine(self.path, busy_seconds)
        try:
            with self.read() as connection:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        except RegistryUnusable:
            self.close()
            raise
        if found != "ok":
            self.close()
            raise self._unusable(f"malformed: {found}", sqlite3.SQLITE_CORRUPT)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot, without what other threads write meanwhile."""
        with self._failures(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed durably as a whole, or not at all."""
        writer = self._engine.execution_options(stacked_begin="IMMEDIATE")
        with self._failures(), self._writing, writer.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self._closed = True
        self._engine.dispose()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        if self._closed:
            raise RegistryUnusable(f"the registry {self.path} has been closed")
        try:
            yield
        except IntegrityError as error:
            raise RecordConflict(
                f"the records would contradict each other: {error.orig}"
            ) from error
        except (DBAPIError, sqlite3.Error, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            # An extended code ends in the primary one; Python's own errors have none.
            code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
            raise self._unusable(cause, code) from error

    def _unusable(self, said: object, code: int) -> RegistryUnusable:
        advice = _ADVICE.get(code, "see what it says")
        return RegistryUnusable(f"the registry {self.path} cannot be used: {said}; {advice}")


def _engine(path: Path, busy_seconds: float) -> Engine:
    # Threads share the pool; a reader holds a connection for one short transaction.
    engine = create_engine(f"sqlite:///{path}", pool_size=8, max_overflow=-1)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late, and only writes
        connection.execute(f"PRAGMA busy_timeout = {round(busy_seconds * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power failure

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A write that begins as a read could find the lock taken when it can no longer wait.
        kind = connection.get_execution_options().get("stacked_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {kind}")

    return engine
