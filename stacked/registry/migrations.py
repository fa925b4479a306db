"""Making a registry, and bringing one of an earlier version to the one this program reads.

The version is stored with the tables and changes in the same transaction: a kill leaves the old
version or the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, MetaData

from stacked.errors import RegistryUnusable
from stacked.registry.postgresql import Postgresql
from stacked.registry.schema import metadata
from stacked.registry.sqlite import Sqlite

Step = Callable[[Connection], None]

# The version of 0.1; those before it were never released.
FIRST = 9
# Step n brings version FIRST + n to the next one, in SQL of its own that both SQLite and PostgreSQL
# read: `schema.py` moves on. A step that was released is never edited; append another.
STEPS: tuple[Step, ...] = ()


def migrate(
    store: Sqlite | Postgresql, steps: Sequence[Step] = STEPS, tables: MetaData = metadata
) -> None:
    """Make the tables where there are none, or run the steps that they lack.

    Raises RegistryUnusable for a registry of a newer version, of one that was never released, or
    for something else, and the errors of the driver.
    """
    newest = FIRST + len(steps)
    with store.migrating() as connection:
        version = store.version(connection)
        if version is None:
            _create(connection, tables)
        else:
            _check_version(version, newest, store.name)
            for step in steps[version - FIRST :]:
                step(connection)
        if version != newest:
            store.set_version(connection, newest)


def _create(connection: Connection, tables: MetaData) -> None:
    # A copy: where tables that name each other are altered, SQLAlchemy marks their constraints.
    copy = MetaData()
    for table in tables.tables.values():
        table.to_metadata(copy)
    copy.create_all(connection, checkfirst=False)


def _check_version(version: int, newest: int, name: str) -> None:
    if version > newest:
        raise RegistryUnusable(
            f"{name} is of version {version} and this program reads up to version {newest}; use "
            "the newer program that wrote it, or another place"
        )
    if version < FIRST:
        raise RegistryUnusable(
            f"{name} is of version {version}, which was never released, and this program reads "
            f"versions from {FIRST} on; move it away to begin anew, or use the program of then"
        )
