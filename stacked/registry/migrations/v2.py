"""Version 2 of the registry: described models that may lack content, artifacts, kinds of group.

It must not be edited any more; a change of the tables is a further version.
"""

from __future__ import annotations

import sqlite3

_MODEL_COLUMNS = (
    "description TEXT NOT NULL DEFAULT ''",
    "category TEXT NOT NULL DEFAULT 'USER'",
    "version_label TEXT NOT NULL DEFAULT ''",
    "base_model_id TEXT REFERENCES models (id)",
)

# SQLite cannot take NOT NULL off a column: the base of a group that is not STACKED is none.
_GROUPS = """
    CREATE TABLE new_model_groups (
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
        kind TEXT NOT NULL,
        description TEXT NOT NULL,
        base_model_id TEXT REFERENCES models (id),
        custom_metadata TEXT NOT NULL,
        version_history_id TEXT REFERENCES version_histories (id),
        version INTEGER,
        version_label TEXT NOT NULL,
        create_type TEXT NOT NULL,
        source_group_id TEXT REFERENCES model_groups (id),
        UNIQUE (version_history_id, version)
    )
"""
_KEPT = (
    "seq, id, display_name, state, reason, created_by, compartment_id, project_id, tags, "
    "time_created, time_updated, description, base_model_id, custom_metadata, version_history_id, "
    "version, version_label, create_type, source_group_id"
)

_ARTIFACTS = """
    CREATE TABLE artifacts (
        seq INTEGER NOT NULL PRIMARY KEY,
        owner_id TEXT NOT NULL,
        part TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        md5 TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        name TEXT NOT NULL,
        time_created TEXT NOT NULL,
        UNIQUE (owner_id, part)
    )
"""


def extend(connection: sqlite3.Connection) -> None:
    """Bring the tables of version 1 forward; every row of them stays."""
    for column in _MODEL_COLUMNS:
        connection.execute(f"ALTER TABLE models ADD COLUMN {column}")
    # Version 1 checked adapters against the served base alone: where there was one, that is it.
    connection.execute(
        "UPDATE models SET base_model_id = (SELECT id FROM models WHERE kind = 'base') "
        "WHERE kind = 'adapter' AND (SELECT count(*) FROM models WHERE kind = 'base') = 1"
    )
    connection.execute(_GROUPS)
    connection.execute(
        f"INSERT INTO new_model_groups ({_KEPT}, kind) SELECT {_KEPT}, 'STACKED' FROM model_groups"
    )
    connection.execute("DROP TABLE model_groups")
    connection.execute("ALTER TABLE new_model_groups RENAME TO model_groups")
    for column in ("time_created", "display_name", "state"):
        connection.execute(f"CREATE INDEX model_groups_by_{column} ON model_groups ({column})")
    connection.execute(_ARTIFACTS)
    connection.execute("CREATE INDEX artifacts_by_sha256 ON artifacts (sha256)")
