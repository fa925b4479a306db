"""Transactions on the records, and the failures of what stores them as one class of error.

Reads see one snapshot and never wait; writes exclude each other, those of other processes too, and
are durable when they return.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from stacked.errors import RecordConflict, RecordInvalid, RegistryUnusable
from stacked.registry.migrations import STEPS, Step, migrate
from stacked.registry.postgresql import Postgresql, Shared
from stacked.registry.schema import metadata
from stacked.registry.sqlite import Sqlite


class Database:
    """A file or a schema of a server, open. Every method may be called from any thread; `close`
    once, at the end.
    """

    def __init__(
        self,
        where: Path | Shared,
        busy_seconds: float,
        steps: Sequence[Step] = STEPS,
        tables: MetaData = metadata,
    ) -> None:
        """Make or migrate it. `busy_seconds`: how long to wait for other processes' writes.

        Raises RegistryUnusable.
        """
        self._closed = False
        # Without it, SQLite would let threads poll for the write lock, and starve some; on a server
        # each would hold a connection meanwhile.
        self._writing = threading.Lock()
        self._store = (
            Postgresql(where, busy_seconds)
            if isinstance(where, Shared)
            else Sqlite(where, busy_seconds)
        )
        try:
            with self._failures():
                migrate(self._store, steps, tables)
                self._store.check()
        except RegistryUnusable:
            self.close()
            raise

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot, without what is written meanwhile."""
        with self._failures(), self._store.transaction(write=False) as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed durably as a whole, or not at all."""
        with self._failures(), self._writing, self._store.transaction(write=True) as connection:
            yield connection

    def claim(self, *, shared: bool) -> None:
        """Write alone from now on, or with others that share it.

        Raises DataDirInUse, also from later writes, if another process has it.
        """
        with self._failures(), self._writing:
            self._store.claim(shared=shared)

    @property
    def owner(self) -> int:
        """The number of the claim: that of one process, or of those that share it."""
        return self._store.owner or 0

    @property
    def schema(self) -> str | None:
        """Where the tables are; None: in a file."""
        return self._store.schema

    @property
    def process(self) -> int:
        """The number of this process among all that have claimed it; 0: it has not."""
        return self._store.process

    def running(self, connection: Connection) -> frozenset[int]:
        """The numbers of the processes that have claimed it and run."""
        return self._store.running(connection)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One at a time of the processes that share it; they may write meanwhile."""
        with self._failures(), self._store.turn():
            yield

    def registries(self, connection: Connection) -> list[str]:
        """The schemas of other registries in the same database."""
        return self._store.registries(connection)

    def close(self) -> None:
        self._closed = True
        self._store.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        if self._closed:
            raise RegistryUnusable(f"{self._store.name} has been closed")
        try:
            yield
        except IntegrityError as error:
            raise RecordConflict(
                f"the records would contradict each other: {error.orig}"
            ) from error
        except DataError as error:
            raise RecordInvalid(f"the records cannot have this value: {error.orig}") from error
        except (DBAPIError, PoolTimeout, sqlite3.Error, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            assert cause is not None
            said = " ".join(str(cause).split())
            raise RegistryUnusable(
                f"{self._store.name} cannot be used: {said}; {self._store.advice(cause)}"
            ) from error
