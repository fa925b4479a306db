"""Version 1 of the registry: every table, as it was first released.

It must not be edited any more; a change of the tables is a further version.
"""

from __future__ import annotations

import sqlite3

# What every kind of record has; `seq` is the order in which rows came.
_RECORD = """
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
    time_updated TEXT NOT NULL
"""

_TABLES = {
    "models": f"""{_RECORD},
        kind TEXT NOT NULL,
        digest TEXT NOT NULL,
        source TEXT NOT NULL,
        rank INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        extra TEXT NOT NULL
    """,
    "version_histories": f"""{_RECORD},
        description TEXT NOT NULL,
        latest_group_id TEXT REFERENCES model_groups (id)
    """,
    "model_groups": f"""{_RECORD},
        description TEXT NOT NULL,
        base_model_id TEXT NOT NULL REFERENCES models (id),
        custom_metadata TEXT NOT NULL,
        version_history_id TEXT REFERENCES version_histories (id),
        version INTEGER,
        version_label TEXT NOT NULL,
        create_type TEXT NOT NULL,
        source_group_id TEXT REFERENCES model_groups (id),
        UNIQUE (version_history_id, version)
    """,
    "group_members": """
        seq INTEGER NOT NULL PRIMARY KEY,
        group_id TEXT NOT NULL REFERENCES model_groups (id),
        position INTEGER NOT NULL,
        model_id TEXT NOT NULL REFERENCES models (id),
        "key" TEXT,
        UNIQUE (group_id, position),
        UNIQUE (group_id, "key")
    """,
    "deployments": f"""{_RECORD},
        description TEXT NOT NULL,
        configuration TEXT NOT NULL,
        group_id TEXT REFERENCES model_groups (id),
        generation INTEGER NOT NULL,
        previous_group_id TEXT REFERENCES model_groups (id),
        work_request_id TEXT REFERENCES work_requests (id)
    """,
    "deployed_members": """
        seq INTEGER NOT NULL PRIMARY KEY,
        deployment_id TEXT NOT NULL REFERENCES deployments (id),
        group_id TEXT NOT NULL REFERENCES model_groups (id),
        position INTEGER NOT NULL,
        model_id TEXT NOT NULL REFERENCES models (id),
        "key" TEXT,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        time_created TEXT NOT NULL,
        UNIQUE (deployment_id, group_id, position)
    """,
    "work_requests": """
        seq INTEGER NOT NULL PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        operation TEXT NOT NULL,
        status TEXT NOT NULL,
        percent FLOAT NOT NULL,
        resources TEXT NOT NULL,
        compartment_id TEXT NOT NULL,
        time_accepted TEXT NOT NULL,
        time_started TEXT,
        time_finished TEXT
    """,
    "work_logs": """
        seq INTEGER NOT NULL PRIMARY KEY,
        work_request_id TEXT NOT NULL REFERENCES work_requests (id),
        message TEXT NOT NULL,
        time TEXT NOT NULL
    """,
    "work_errors": """
        seq INTEGER NOT NULL PRIMARY KEY,
        work_request_id TEXT NOT NULL REFERENCES work_requests (id),
        code TEXT NOT NULL,
        message TEXT NOT NULL,
        model_id TEXT,
        time TEXT NOT NULL
    """,
}

_LISTED = ("models", "version_histories", "model_groups", "deployments")

_INDEXES = (
    *((f"{table}_by_{column}", table, column)
      for table in _LISTED for column in ("time_created", "display_name", "state")),
    ("models_by_digest", "models", "digest"),
    ("group_members_by_model", "group_members", "model_id"),
    ("work_requests_by_time_accepted", "work_requests", "time_accepted"),
    ("work_requests_by_status", "work_requests", "status"),
    ("work_logs_by_request", "work_logs", "work_request_id"),
    ("work_errors_by_request", "work_errors", "work_request_id"),
)  # fmt: skip


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file."""
    for table, columns in _TABLES.items():
        connection.execute(f"CREATE TABLE {table} ({columns})")
    for index, table, column in _INDEXES:
        connection.execute(f"CREATE INDEX {index} ON {table} ({column})")
    connection.execute(
        "CREATE UNIQUE INDEX version_histories_name ON version_histories (display_name) "
        "WHERE state <> 'DELETED'"
    )
