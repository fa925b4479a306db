"""Records of uploaded files: which bytes belong to which model or group.

It must not know where the files stand; each function works in the transaction it is given.
"""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, delete, insert, select

from stacked.errors import RecordAbsent
from stacked.registry.records import Artifact
from stacked.registry.rows import build, values
from stacked.registry.schema import artifacts


def put(connection: Connection, artifact: Artifact) -> None:
    """Record it in the place of what the owner had there."""
    drop(connection, artifact.owner_id, artifact.part)
    connection.execute(insert(artifacts).values(values(artifacts, artifact)))


def get(connection: Connection, owner_id: str, part: str) -> Artifact:
    """Raises RecordAbsent."""
    row = _find(connection, owner_id, part)
    if row is None:
        what = f"artifact of metadata {part!r}" if part else "artifact"
        raise RecordAbsent(f"{owner_id} has no {what}")
    return build(Artifact, row)


def is_there(connection: Connection, owner_id: str, part: str) -> bool:
    return _find(connection, owner_id, part) is not None


def of(connection: Connection, owner_id: str) -> tuple[Artifact, ...]:
    """All of an owner, in the order they came."""
    wanted = select(artifacts).where(artifacts.c.owner_id == owner_id).order_by(artifacts.c.seq)
    return tuple(build(Artifact, row) for row in connection.execute(wanted).mappings())


def drop(connection: Connection, owner_id: str, part: str | None = None) -> None:
    """Forget one part, or all of an owner."""
    gone = delete(artifacts).where(artifacts.c.owner_id == owner_id)
    connection.execute(gone if part is None else gone.where(artifacts.c.part == part))


def files(connection: Connection) -> frozenset[str]:
    """The sha256 of every file that a record needs."""
    return frozenset(connection.execute(select(artifacts.c.sha256)).scalars())


def needs(connection: Connection, sha256: str) -> bool:
    """Whether any record needs this file."""
    found = select(artifacts.c.seq).where(artifacts.c.sha256 == sha256).limit(1)
    return connection.execute(found).first() is not None


def _find(connection: Connection, owner_id: str, part: str) -> RowMapping | None:
    here = (artifacts.c.owner_id == owner_id) & (artifacts.c.part == part)
    return connection.execute(select(artifacts).where(here)).mappings().first()
