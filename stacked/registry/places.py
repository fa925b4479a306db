"""Where the records of a group are: a file in its directory, or a database that it names."""

from __future__ import annotations

from pathlib import Path

from stacked.errors import RegistryUnusable
from stacked.logs import shown_url
from stacked.registry.postgresql import Shared

FILE = "registry.sqlite"
_NOTE = "database"


def place_of(directory: Path, url: str | None, connections: int = 8) -> Path | Shared:
    """The file, or with an address a schema named as the directory is.

    Raises RegistryUnusable where the records are in the other of the two: the rest of the directory
    belongs to them, and would be removed as nobody's.
    """
    file, elsewhere = directory / FILE, database_of(directory)
    if url is None and elsewhere is not None:
        raise RegistryUnusable(
            f"the records of {directory} are in {elsewhere}; set storage.database or "
            "STACKED_DATABASE, or remove the directory to begin anew"
        )
    if url is None:
        return file
    if file.exists():
        raise RegistryUnusable(
            f"the records of {directory} are in a file, {file}, and a database is set; leave that "
            "out, or move the directory away to begin anew"
        )
    return Shared(url, f"stacked_{directory.name}", connections)


def database_of(directory: Path) -> str | None:
    """The database of the group's records, as it may be shown; None: a file."""
    note = directory / _NOTE
    return note.read_text(encoding="utf-8") if note.exists() else None


def note_database(directory: Path, place: Path | Shared) -> None:
    """Name the database in the directory."""
    if isinstance(place, Shared):
        (directory / _NOTE).write_text(shown_url(place.url), encoding="utf-8")
