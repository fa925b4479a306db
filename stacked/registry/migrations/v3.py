"""Version 3 of the registry: a table for retry tokens, and the answers that first calls got.

It must not be edited once it was released; a change of the tables is a further version.
"""

from __future__ import annotations

import sqlite3


def extend(connection: sqlite3.Connection) -> None:
    """Make the table, empty."""
    connection.execute(
        """
        CREATE TABLE retry_tokens (
            seq INTEGER NOT NULL PRIMARY KEY,
            principal TEXT NOT NULL,
            operation TEXT NOT NULL,
            token TEXT NOT NULL,
            payload TEXT NOT NULL,
            status INTEGER,
            headers TEXT NOT NULL,
            body BLOB NOT NULL,
            time_created TEXT NOT NULL,
            UNIQUE (principal, operation, token)
        )
        """
    )
    connection.execute("CREATE INDEX retry_tokens_by_time_created ON retry_tokens (time_created)")
