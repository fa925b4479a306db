"""Bringing a registry file from whatever version it has to the one this program reads.

The version is SQLite's own `user_version`, which changes in the same transaction as the tables:
a kill leaves the old version or the new one. It must not use today's `schema.py`, which will move.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from stacked.errors import RegistryUnusable
from stacked.registry.migrations import v1, v2, v3, v4

Step = Callable[[sqlite3.Connection], None]

# Step n brings version n to n + 1. A step that was released is never edited; append another.
STEPS: tuple[Step, ...] = (v1.create, v2.extend, v3.extend, v4.extend)


def migrate(path: Path, *, busy_seconds: float, steps: Sequence[Step] = STEPS) -> int:
    """Run the steps that the file lacks; the version it had. An absent file becomes a registry.

    Raises RegistryUnusable for a file of a newer version, or of something else, and sqlite3.Error.
    """
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
    try:
        # Steps may rebuild tables; what they leave is checked as a whole below.
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        version = _version(connection, path, len(steps))
        for step in steps[version:]:
            step(connection)
        if version < len(steps):
            _check(connection, path)
            connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # kept in the file; not before it is ours
        return version
    finally:
        connection.close()  # an open transaction is rolled back


def _version(connection: sqlite3.Connection, path: Path, known: int) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > known:
        raise RegistryUnusable(
            f"the registry {path} is of version {version} and this program reads up to version "
            f"{known}; use the newer program that wrote it, or another data directory"
        )
    if version <= 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise RegistryUnusable(
            f"{path} is a database, but not a registry; move it away, or choose another data "
            "directory"
        )
    return version


def _check(connection: sqlite3.Connection, path: Path) -> None:
    broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    if broken:
        raise RegistryUnusable(
            f"the registry {path} could not be brought to this version: a row of table "
            f"{broken[0]} names one of {broken[2]} that is not there; nothing was changed"
        )
