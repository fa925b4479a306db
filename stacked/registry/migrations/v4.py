"""Version 4 of the registry: version sets of models, and which of its models is which version.

It must not be edited once it was released; a change of the tables is a further version.
"""

from __future__ import annotations

import sqlite3

_SETS = """
    CREATE TABLE model_version_sets (
        seq INTEGER NOT NULL PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        display_name TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        created_by TEXT NOT NULL,
        compartment_id TEXT NOT NULL,
        project_id TEXT NOT NULL,
        tags TEXT NOT NULL,
        time_created TEXT NOT NULL,
        time_updated TEXT NOT NULL,
        description TEXT NOT NULL
    )
"""


def extend(connection: sqlite3.Connection) -> None:
    """Make the table, empty: what a model said of a set before named one that was not here."""
    connection.execute(_SETS)
    for column in ("time_created", "display_name", "state"):
        connection.execute(
            f"CREATE INDEX model_version_sets_by_{column} ON model_version_sets ({column})"
        )
    connection.execute(
        "CREATE UNIQUE INDEX model_version_sets_name ON model_version_sets (display_name) "
        "WHERE state <> 'DELETED'"
    )
    connection.execute(
        "ALTER TABLE models ADD COLUMN version_set_id TEXT REFERENCES model_version_sets (id)"
    )
    connection.execute("ALTER TABLE models ADD COLUMN version INTEGER")
    connection.execute(
        "CREATE UNIQUE INDEX models_by_version_set ON models (version_set_id, version)"
    )
