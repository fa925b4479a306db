"""Contents and uploaded files by digest, in a directory or an object store of several machines.

Each is one file, which appears whole. Nothing is removed. What is read is checked by its digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from stacked.errors import ConfigInvalid, SourceNotFound, StoreDamaged
from stacked.logs import shown_url
from stacked.store import objects
from stacked.store.disk import usable
from stacked.store.limits import GIB, Limits
from stacked.store.packing import packed

_WHAT = "the shared place of contents"
# As large as what may be uploaded; a base of 64 GiB within the hour.
_LIMITS = Limits(max_bytes=72 * GIB, download_seconds=3600.0)


class SharedContents:
    """`adapters/`, `bases/` and `models/` with `<64 hex digits>.zip`, `files/<64 hex digits>`.

    Every method blocks, and may be called from any thread. All raise StoreUnusable for a directory,
    and what `objects.download` raises for an object store.
    """

    def __init__(self, place: str) -> None:
        """`place`: a path, or an address that `objects.download` reads. Raises ConfigInvalid."""
        if "://" in place and objects.scheme_of(place) is None:
            raise ConfigInvalid(
                f"storage.contents: {shown_url(place)} is no place for contents; expected a "
                f"directory, or an address with {', '.join(objects.LIBRARIES)}"
            )
        self.place = place.rstrip("/")
        self._there: set[str] = set()

    def put(self, kind: str, digest: str, directory: Path, scratch: Path) -> None:
        """Add a content's files, unless they are there; `scratch` holds the zip meanwhile."""
        name = _zip_of(kind, digest)
        if self._has(name):
            return
        archive = scratch / f"{uuid.uuid4().hex}.zip"
        with usable(scratch, "the store"), archive.open("xb") as file:
            file.writelines(packed(directory))
        try:
            self._add(name, archive)
        finally:
            archive.unlink()

    def put_file(self, file: Path, sha256: str) -> None:
        """Add an uploaded file, unless it is there."""
        if not self._has(f"files/{sha256}"):
            self._add(f"files/{sha256}", file)

    def fetch(self, kind: str, digest: str, scratch: Path) -> Path | None:
        """The zip of a content's files, not checked; None if it is not there."""
        found = self._fetched(_zip_of(kind, digest), scratch)
        if found is not None:
            self._there.add(_zip_of(kind, digest))
        return found

    def fetch_file(self, sha256: str, target: Path, scratch: Path) -> bool:
        """Put an uploaded file there; False if this place has none.

        Raises StoreDamaged for another file.
        """
        found = self._fetched(f"files/{sha256}", scratch)
        if found is None:
            return False
        part = scratch / uuid.uuid4().hex
        with usable(scratch, "the store of artifacts"):
            shutil.copyfile(found, part)
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    part.unlink()
                    raise self.damaged(f"files/{sha256}")
            os.replace(part, target)
        return True

    def damaged(self, name: str) -> StoreDamaged:
        """Of a file that is not what its name says."""
        return StoreDamaged(
            f"{shown_url(self.place)}/{name} is not what its name says; remove it, and add it anew"
        )

    def _has(self, name: str) -> bool:
        if name not in self._there:
            if objects.scheme_of(self.place):
                there = objects.exists(f"{self.place}/{name}", _LIMITS)
            else:
                there = Path(self.place, name).exists()
            if not there:
                return False
            self._there.add(name)
        return True

    def _add(self, name: str, file: Path) -> None:
        if objects.scheme_of(self.place):
            objects.upload(file, f"{self.place}/{name}", _LIMITS)
        else:
            target = Path(self.place, name)
            part = target.with_name(f".{uuid.uuid4().hex}")
            with usable(Path(self.place), _WHAT):
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(file, part)
                    os.replace(part, target)
                finally:
                    part.unlink(missing_ok=True)
        self._there.add(name)

    def _fetched(self, name: str, scratch: Path) -> Path | None:
        if not objects.scheme_of(self.place):
            with usable(Path(self.place), _WHAT):
                return Path(self.place, name) if Path(self.place, name).is_file() else None
        try:
            return objects.download(
                f"{self.place}/{name}", scratch / uuid.uuid4().hex, _LIMITS, (), reuse=True
            )
        except SourceNotFound:
            return None


def _zip_of(kind: str, digest: str) -> str:
    return f"{kind}/{digest.removeprefix('sha256:')}.zip"
