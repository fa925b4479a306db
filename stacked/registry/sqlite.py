"""One SQLite file, for one process: its settings, its version, and what its errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event

from stacked.errors import RegistryUnusable

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


class Sqlite:
    """A file. The version of its tables is SQLite's own `user_version`."""

    def __init__(self, path: Path, busy_seconds: float) -> None:
        self._path = Path(path).absolute()
        self._busy_seconds = busy_seconds
        self.name = f"the registry {self._path}"
        self.schema, self.owner, self.process = None, 0, 0
        self._engine = self._make_engine()

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        # A write that begins as a read could find the lock taken when it can no longer wait.
        with _begun(self._engine, "IMMEDIATE" if write else "DEFERRED") as connection:
            yield connection

    @contextlib.contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A transaction in which references may be broken: steps may rebuild tables.

        Raises OSError where the directory cannot be made.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        engine = self._make_engine(references="OFF")
        try:
            with _begun(engine, "IMMEDIATE") as connection:
                yield connection
            # Stored in the file; not before it is ours.
            with contextlib.closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            engine.dispose()

    def version(self, connection: Connection) -> int | None:
        """None for an empty file."""
        version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if not version and connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first():
            raise RegistryUnusable(
                f"{self._path} is a database, but not a registry; move it away, or choose another "
                "data directory"
            )
        return version or None

    def set_version(self, connection: Connection, version: int) -> None:
        """Raises RegistryUnusable if a step has broken a reference."""
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken:
            raise RegistryUnusable(
                f"{self.name} could not be brought to this version: a row of table "
                f"{broken[0]} names one of {broken[2]} that is not there; nothing was changed"
            )
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")

    def check(self) -> None:
        """Raises RegistryUnusable for a damaged file."""
        with self.transaction(write=False) as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            advice = _ADVICE[sqlite3.SQLITE_CORRUPT]
            raise RegistryUnusable(f"{self.name} cannot be used: malformed: {found}; {advice}")

    def claim(self, *, shared: bool) -> None:
        """Nothing: the lock of the data directory holds the file for this process."""
        assert not shared, "a file is of one process"

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """At once, as no other process has the file."""
        yield

    def running(self, connection: Connection) -> frozenset[int]:
        """No process has a number."""
        return frozenset()

    def registries(self, connection: Connection) -> list[str]:
        """No other ones are in one file."""
        return []

    def advice(self, error: BaseException) -> str:
        # An extended code ends in the primary one; Python's own errors have none.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return _ADVICE.get(code, "see what it says")

    def close(self) -> None:
        self._engine.dispose()

    def _make_engine(self, references: str = "ON") -> Engine:
        # Threads share the pool; a reader holds a connection for one short transaction.
        engine = create_engine(f"sqlite:///{self._path}", pool_size=8, max_overflow=-1)

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, record: Any) -> None:
            connection.isolation_level = None  # the driver's BEGIN comes too late, and only writes
            connection.execute(f"PRAGMA busy_timeout = {round(self._busy_seconds * 1000)}")
            connection.execute(f"PRAGMA foreign_keys = {references}")
            connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power failure

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            kind = connection.get_execution_options().get("stacked_begin", "DEFERRED")
            connection.exec_driver_sql(f"BEGIN {kind}")

        return engine


@contextlib.contextmanager
def _begun(engine: Engine, kind: str) -> Iterator[Connection]:
    with engine.execution_options(stacked_begin=kind).begin() as connection:
        yield connection
