"""Records of uploaded files: which bytes belong to which model or group.

The functions are shared with the repositories of their owners, in whose transactions they work.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from stacked.errors import RecordAbsent
from stacked.registry.database import Database
from stacked.registry.paging import build
from stacked.registry.records import Artifact
from stacked.registry.repository import values
from stacked.registry.schema import artifacts


class ArtifactRepository:
    """The files of all owners, by the part of the owner that they belong to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, artifact: Artifact) -> None:
        """Record a file that was made here; this does not change its owner."""
        with self._database.write() as connection:
            put(connection, artifact)

    def get(self, owner_id: str, part: str = "") -> Artifact:
        """Raises RecordAbsent."""
        with self._database.read() as connection:
            return get(connection, owner_id, part)

    def of(self, owner_id: str) -> tuple[Artifact, ...]:
        """All of an owner, in order of upload."""
        wanted = select(artifacts).where(artifacts.c.owner_id == owner_id).order_by(artifacts.c.seq)
        with self._database.read() as connection:
            return tuple(build(Artifact, row) for row in connection.execute(wanted).mappings())

    def files(self) -> frozenset[str]:
        """The sha256 of every file that a record needs."""
        with self._database.read() as connection:
            return frozenset(connection.execute(select(artifacts.c.sha256)).scalars())

    def needs(self, sha256: str) -> bool:
        """Whether any record needs this file."""
        found = select(artifacts.c.seq).where(artifacts.c.sha256 == sha256).limit(1)
        with self._database.read() as connection:
            return connection.execute(found).first() is not None


def put(connection: Connection, artifact: Artifact) -> None:
    """Record it in place of the owner's earlier file."""
    drop(connection, artifact.owner_id, artifact.part)
    connection.execute(insert(artifacts).values(values(artifacts, artifact)))


def get(connection: Connection, owner_id: str, part: str) -> Artifact:
    """Raises RecordAbsent."""
    found = find(connection, owner_id, part)
    if found is None:
        what = f"artifact of metadata {part!r}" if part else "artifact"
        raise RecordAbsent(f"{owner_id} has no {what}")
    return found


def find(connection: Connection, owner_id: str, part: str) -> Artifact | None:
    """None if the owner has no such file."""
    here = (artifacts.c.owner_id == owner_id) & (artifacts.c.part == part)
    row = connection.execute(select(artifacts).where(here)).mappings().first()
    return None if row is None else build(Artifact, row)


def drop(connection: Connection, owner_id: str, part: str | None = None) -> None:
    """Delete one part, or all of an owner."""
    gone = delete(artifacts).where(artifacts.c.owner_id == owner_id)
    connection.execute(gone if part is None else gone.where(artifacts.c.part == part))
