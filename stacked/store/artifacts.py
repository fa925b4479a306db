"""Uploaded files, unchanged, by the sha256 of their bytes: received, stored, read, removed."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import IO

from stacked.errors import StoreDamaged
from stacked.store.disk import check_room, flush, usable
from stacked.store.packing import packed
from stacked.store.shared import SharedContents

_WHAT = "the store of artifacts"


class Incoming:
    """A file that is being received; leaving the `with` block discards it unless it was stored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> None:
        """Raises StoreUnusable if the disk is full."""
        with usable(self.path.parent, _WHAT):
            self._file.write(data)
        self.bytes += len(data)
        self._sha256.update(data)
        self._md5.update(data)

    def finish(self) -> None:
        """Flush the complete file to the disk."""
        with usable(self.path.parent, _WHAT):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class ArtifactFiles:
    """A directory of files. Every method blocks, and may be called from any thread.

    root/<64 hex digits>              one file
    root/incoming/<id>                one being received
    """

    def __init__(
        self, root: Path, keep: Collection[str], shared: SharedContents | None = None
    ) -> None:
        """What is not in `keep` was left by a process that is gone. Raises StoreUnusable."""
        self.root = Path(root).absolute()
        self._shared = shared
        self._incoming = self.root / "incoming"
        with usable(self.root, _WHAT):
            if self._incoming.is_dir():
                shutil.rmtree(self._incoming)
            self._incoming.mkdir(parents=True)
        self.drop_others(keep)

    def receive(self, expected: int = 0) -> Incoming:
        """A new file to receive into. Raises StoreUnusable without room for `expected` bytes."""
        with usable(self.root, _WHAT):
            check_room(self.root, expected, "the upload")
            return Incoming(self._incoming / uuid.uuid4().hex)

    def share(self, incoming: Incoming) -> None:
        """Have a finished file where other machines find it."""
        if self._shared is not None:
            self._shared.put_file(incoming.path, incoming.sha256)

    def keep(self, incoming: Incoming) -> None:
        """Give a finished file its name; the same bytes are stored once."""
        with usable(self.root, _WHAT):
            incoming.path.rename(self.root / incoming.sha256)
            flush(self.root)

    def open(self, sha256: str) -> IO[bytes]:
        """Raises StoreDamaged if the file is missing, here and where it is shared."""
        file = self.root / sha256
        if self._shared is not None and not file.exists():
            self._shared.fetch_file(sha256, file, self._incoming)
        try:
            return file.open("rb")
        except FileNotFoundError as error:
            raise StoreDamaged(
                f"the artifact {sha256} is gone from {self.root}; upload it again"
            ) from error

    def drop_others(self, keep: Collection[str]) -> int:
        """Remove every file except these; returns how many."""
        with usable(self.root, _WHAT):
            gone = [name for name in os.listdir(self.root) if name not in keep]
            gone.remove(self._incoming.name)
            for name in gone:
                (self.root / name).unlink(missing_ok=True)
        return len(gone)

    def drop(self, sha256: str) -> None:
        """Remove a file; readers that have it open continue."""
        with usable(self.root, _WHAT):
            (self.root / sha256).unlink(missing_ok=True)


def pack(directory: Path, into: Incoming) -> None:
    """Write a directory's files as a zip."""
    for part in packed(directory):
        into.write(part)
