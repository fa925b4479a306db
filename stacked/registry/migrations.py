"""Making a registry file, and bringing one of an earlier version to the one this program reads.

The version is SQLite's own `user_version`, which changes in the same transaction as the tables:
a kill leaves the old version or the new one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from stacked.errors import RegistryUnusable
from stacked.registry.schema import metadata

Step = Callable[[sqlite3.Connection], None]

# The version of 0.1; those before it were never released.
FIRST = 7
# Step n brings version FIRST + n to the next one, in SQL of its own: `schema.py` moves on. A step
# that was released is never edited; append another.
STEPS: tuple[Step, ...] = ()


def migrate(path: Path, *, busy_seconds: float, steps: Sequence[Step] = STEPS) -> None:
    """Make the tables in an absent or empty file, or run the steps that the file lacks.

    Raises RegistryUnusable for a file of a newer version, of one that was never released, or of
    something else, and sqlite3.Error.
    """
    newest = FIRST + len(steps)
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
    try:
        # Steps may rebuild tables; what they leave is checked as a whole below.
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        version = _version(connection, path, newest)
        if version is None:
            _create(connection)
        else:
            for step in steps[version - FIRST :]:
                step(connection)
        if version != newest:
            _check(connection, path)
            connection.execute(f"PRAGMA user_version = {newest}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # stored in the file; not before it is ours
    finally:
        connection.close()  # an open transaction is rolled back


def _version(connection: sqlite3.Connection, path: Path, newest: int) -> int | None:
    """None for an empty file."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > newest:
        raise RegistryUnusable(
            f"the registry {path} is of version {version} and this program reads up to version "
            f"{newest}; use the newer program that wrote it, or another data directory"
        )
    if version >= FIRST:
        return version
    if version > 0:
        raise RegistryUnusable(
            f"the registry {path} is of version {version}, which was never released, and this "
            f"program reads versions from {FIRST} on; move the file away to begin anew, or use the "
            "program that wrote it"
        )
    if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise RegistryUnusable(
            f"{path} is a database, but not a registry; move it away, or choose another data "
            "directory"
        )
    return None


def _create(connection: sqlite3.Connection) -> None:
    dialect = sqlite.dialect()
    for table in metadata.tables.values():
        connection.execute(str(CreateTable(table).compile(dialect=dialect)))
        for index in table.indexes:
            connection.execute(str(CreateIndex(index).compile(dialect=dialect)))


def _check(connection: sqlite3.Connection, path: Path) -> None:
    broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    if broken:
        raise RegistryUnusable(
            f"the registry {path} could not be brought to this version: a row of table "
            f"{broken[0]} names one of {broken[2]} that is not there; nothing was changed"
        )
