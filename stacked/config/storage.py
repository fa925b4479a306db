"""Where records and contents are stored that several machines share."""

from __future__ import annotations

import os

from pydantic import Field, SecretStr

from stacked.config.fields import Frozen


class StorageConfig(Frozen):
    """Without it, everything is in the data directory, for one process."""

    database: SecretStr | None = None
    """The records: `postgresql://USER@HOST:PORT/NAME`, with libpq's parameters as its query. None:
    $STACKED_DATABASE, else a SQLite file in the data directory."""
    connections: int = Field(default=8, ge=2)
    """To the database, at most; one of them says that the records are in use."""

    contents: str | None = None
    """Where adapters, bases, models and uploaded files are too, by digest: a directory, or
    `s3://bucket/path` and the like. None: $STACKED_CONTENTS, else in the data directory alone."""

    @property
    def contents_place(self) -> str | None:
        """None: the data directory alone."""
        return self.contents or os.environ.get("STACKED_CONTENTS") or None

    @property
    def database_url(self) -> str | None:
        """None: a file in the data directory."""
        if self.database is not None:
            return self.database.get_secret_value()
        return os.environ.get("STACKED_DATABASE") or None
