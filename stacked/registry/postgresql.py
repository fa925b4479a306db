"""A schema of a PostgreSQL server, for processes on several machines.

What reaches the server is bounded in time: what it holds is records, and nothing that is served
waits for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InvalidatePoolError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateSchema

from stacked.errors import DataDirInUse, RegistryUnusable
from stacked.logs import shown_url

# A restart takes a server a second or two; what lasts longer is reported.
_RESTART_SECONDS = 3.0
_PING_SECONDS = 3.0
_START_SECONDS = 30.0
# In seconds and, for the last, milliseconds; each of them may stand in the address.
_PARAMETERS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# Of advisory locks, whose second number is the schema's.
_WRITES, _CLAIM, _TURN = 0x57AC0001, 0x57AC0002, 0x57AC0003

# The next step, by SQLSTATE or its class. What fails before a session is there has none.
_ADVICE = {
    "": "check that it runs and is reached from here, and the user and password",
    "08": "the connection was lost; try again",
    "25006": "it may only be read; give the address of the primary server",
    "28": "check the user and password",
    "40": "another process has changed the same; try again",
    "42501": "grant the user what it lacks, see docs/storage.md",
    "53100": "free some space on its disk, and try again",
    "53300": "raise its max_connections, or lower storage.connections",
    "55P03": "another process is writing to it; try again",
    "57": "it is stopping or starting; try again",
}

# One row. `owner` counts those that have claimed the schema: a process alone, or processes that
# share it; `processes` counts each of them.
_REGISTRY = Table(
    "registry",
    MetaData(),
    Column("version", Integer, nullable=False),
    Column("owner", BigInteger, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("processes", BigInteger, nullable=False),
)

# The server's own settings wait for two hours before a machine that is gone loses its claim.
_NOTICE_LOSS = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)
_LOCKS = (
    "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
)
_HOLDER = text(
    "SELECT concat_ws(', ', application_name, host(client_addr)), mode = 'ShareLock' "
    f"{_LOCKS} AND classid = :claim AND objid = :number AND objsubid = 2"
)
# Of a schema: each process holds a lock of 64 bits, the schema's number before its own.
_PROCESSES = text(f"SELECT objid {_LOCKS} AND classid = :number AND objsubid = 1")


@dataclass(frozen=True, slots=True)
class Shared:
    """A schema in the database of an address, with at most so many connections to it."""

    url: str = field(repr=False)
    """`postgresql://`; its query has libpq's parameters."""
    schema: str
    connections: int = 8
    # A sweep of 10,000 rows takes seconds.
    silent_seconds: float = 30.0
    """The longest silence of a server that is connected to."""

    @property
    def name(self) -> str:
        """Without what may be secret."""
        return f"the registry {shown_url(self.url)} (schema {self.schema})"


class Postgresql:
    """A schema. Writes take turns by an advisory lock, as those of a SQLite file do."""

    def __init__(self, where: Shared, busy_seconds: float) -> None:
        """Connects to nothing. Raises RegistryUnusable for an address that is none."""
        self.schema, self.name = where.schema, where.name
        self._engine = _engine(where, busy_seconds)
        digest = hashlib.sha256(where.schema.encode()).digest()
        self._number = int.from_bytes(digest[:4]) >> 1
        self._silent = where.silent_seconds
        self._turn = self._turn_within(busy_seconds, self._silent)
        self._holder: Connection | None = None
        self._shares = False
        self.owner: int | None = None
        """Which claim the schema is in, and the number of this process; once it was claimed."""
        self.process = 0

    def _turn_within(self, wait: float, silent: float) -> str:
        """What begins a write; it may wait so long for those of others, and be silent so long."""
        # A process that is paused within a transaction must not stop the others for ever.
        return (
            f"SET LOCAL lock_timeout = {round(wait * 1000)}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {round(silent * 1000)}; "
            f"SELECT pg_advisory_xact_lock({_WRITES}, {self._number})"
        )

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        """Raises DataDirInUse for a write if another process has claimed the schema since."""
        if not write:
            with self._begun(isolation_level="REPEATABLE READ") as connection:
                yield connection
            return
        if self.owner is not None:
            self._hold_again()
        with self._begun() as connection:
            connection.exec_driver_sql(self._turn)
            if self.owner is not None:
                self._check_owner(connection)
            yield connection

    @contextlib.contextmanager
    def migrating(self) -> Iterator[Connection]:
        # Once, at a start; many may start at once.
        with self._begun(_START_SECONDS) as connection:
            connection.exec_driver_sql(self._turn_within(_START_SECONDS, _START_SECONDS))
            # CREATE SCHEMA IF NOT EXISTS needs the privilege even where it is there.
            if not inspect(connection).has_schema(self.schema):
                connection.execute(CreateSchema(self.schema))
            # For the plain SQL of steps.
            place = connection.dialect.identifier_preparer.quote_identifier(self.schema)
            connection.exec_driver_sql(f"SET LOCAL search_path TO {place}")
            yield connection

    def version(self, connection: Connection) -> int | None:
        """None for an empty schema."""
        tables = inspect(connection).get_table_names(self.schema)
        if not tables:
            return None
        if _REGISTRY.name in tables:
            return int(connection.execute(select(_REGISTRY.c.version)).scalar_one())
        raise RegistryUnusable(
            f"{self.name} has tables of something else; choose another database or group name"
        )

    def set_version(self, connection: Connection, version: int) -> None:
        if inspect(connection).has_table(_REGISTRY.name, self.schema):
            connection.execute(update(_REGISTRY).values(version=version))
        else:
            _REGISTRY.create(connection)
            first = {"version": version, "owner": 0, "shared": False, "processes": 0}
            connection.execute(insert(_REGISTRY).values(first))

    def check(self) -> None:
        """Nothing: the server has checksums of its own."""

    def registries(self, connection: Connection) -> list[str]:
        """The schemas of the other ones in this database."""
        tables = text(
            "SELECT table_schema FROM information_schema.tables "
            "WHERE table_name = 'registry' AND table_schema LIKE 'stacked\\_%'"
        )
        found = connection.execute(tables).scalars()
        return [schema for schema in found if schema != self.schema]

    def advice(self, error: BaseException) -> str:
        if isinstance(error, PoolTimeout):
            return "raise storage.connections, or try again"
        state = getattr(error, "sqlstate", None) or ""
        return _ADVICE.get(state) or _ADVICE.get(state[:2]) or "see what it says"

    def close(self) -> None:
        if self._holder is not None:
            self._holder.close()
        self._engine.dispose()

    # -- single use -------------------------------------------------------------------------

    def claim(self, *, shared: bool) -> None:
        """Hold the schema for this process until it ends."""
        self._shares = shared
        self._holder = self._hold()
        with self._begun() as connection:
            connection.exec_driver_sql(self._turn)
            was_shared = connection.execute(select(_REGISTRY.c.shared)).scalar_one()
            counted = update(_REGISTRY).values(
                owner=_REGISTRY.c.owner + (0 if shared and was_shared else 1),
                shared=shared,
                processes=_REGISTRY.c.processes + 1,
            )
            numbers = connection.execute(
                counted.returning(_REGISTRY.c.owner, _REGISTRY.c.processes)
            )
            self.owner, self.process = numbers.one()
        self._mark(self._holder)

    def running(self, connection: Connection) -> frozenset[int]:
        """The numbers of the processes that have claimed it and run."""
        return frozenset(connection.execute(_PROCESSES, {"number": self._number}).scalars())

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with self._begun() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN}, {self._number})")
            yield

    def _hold_again(self) -> None:
        """Where the session that holds the schema was lost, as in a restart of the server."""
        if self._holder is not None:
            try:
                with _at_most(_PING_SECONDS, self._holder.connection.dbapi_connection):
                    self._holder.exec_driver_sql("SELECT 1")
                return
            except (DBAPIError, PendingRollbackError):
                self._holder.close()
                self._holder = None
        self._holder = self._hold()
        self._mark(self._holder)

    def _hold(self) -> Connection:
        session = self._connect(isolation_level="AUTOCOMMIT")
        session.detach()
        session.exec_driver_sql(_NOTICE_LOSS)
        kind = "_shared" if self._shares else ""
        taken = f"SELECT pg_try_advisory_lock{kind}({_CLAIM}, {self._number})"
        if session.exec_driver_sql(taken).scalar_one():
            return session
        holder = session.execute(_HOLDER, {"claim": _CLAIM, "number": self._number}).first()
        session.close()
        name, fleet = holder or ("unknown", False)
        step = "stop all of its fleet, join it (stacked serve --join)" if fleet else "stop it"
        raise DataDirInUse(
            f"another process ({name}) uses {self.name}; {step}, or choose another database or "
            "group name"
        )

    def _mark(self, holder: Connection) -> None:
        """Take the lock of this process, which a session that was lost may still have too."""
        number = self._number << 32 | self.process & 0xFFFFFFFF
        holder.exec_driver_sql(f"SELECT pg_advisory_lock_shared({number})")

    def _check_owner(self, connection: Connection) -> None:
        if connection.execute(select(_REGISTRY.c.owner)).scalar_one() != self.owner:
            raise DataDirInUse(
                f"another process has used {self.name} while this one had lost it; restart this one"
            )

    # -- connections ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _begun(self, silent: float | None = None, **options: Any) -> Iterator[Connection]:
        with (
            self._connect(**options) as connection,
            _at_most(silent or self._silent, connection.connection.dbapi_connection),
            connection.begin(),
        ):
            yield connection

    def _connect(self, **options: Any) -> Connection:
        """Tried again for a while: nothing was done yet."""
        engine = self._engine.execution_options(**options)
        until = time.monotonic() + min(_RESTART_SECONDS, self._silent)
        while True:
            try:
                return engine.connect()
            except OperationalError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)


def _engine(where: Shared, busy_seconds: float) -> Engine:
    url = _address(where.url)
    given = {name: value for name, value in _PARAMETERS.items() if name not in url.query}
    named = f"stacked {os.getpid()} on {socket.gethostname()}"
    try:
        engine = create_engine(
            url,
            pool_size=where.connections,
            max_overflow=0,
            pool_timeout=busy_seconds,
            # A pooler between may give each transaction another session: none prepares statements.
            connect_args={"fallback_application_name": named, "prepare_threshold": None, **given},
            execution_options={"schema_translate_map": {None: where.schema}},
        )
    except ModuleNotFoundError as error:
        raise RegistryUnusable(
            f"{where.name} needs a driver: pip install 'stacked[postgres]'"
        ) from error

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        record.info["new"] = True

    @event.listens_for(engine, "checkout")
    def checked_out(connection: Any, record: Any, proxy: Any) -> None:
        if record.info.pop("new", False):
            return
        try:
            with _at_most(min(_PING_SECONDS, where.silent_seconds), connection):
                engine.dialect.do_ping(connection)
        except Exception as error:
            raise InvalidatePoolError from error  # after a restart all others are lost too

    return engine


def _address(text: str) -> URL:
    """Raises RegistryUnusable without quoting what may be secret."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in ("postgresql", "postgres"):
        raise RegistryUnusable(
            "storage.database is no address of a database; expected "
            "postgresql://USER@HOST:PORT/NAME, with special characters in it as %XX"
        )
    return url.set(drivername="postgresql+psycopg")


@contextlib.contextmanager
def _at_most(seconds: float, connection: Any) -> Iterator[None]:
    """Within the block, the connection is cut after so long: the driver waits without an end."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:

        def cut() -> None:
            with contextlib.suppress(OSError):
                same.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
