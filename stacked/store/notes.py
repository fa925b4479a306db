"""Short notes about adapters, one file each, named like the adapter. Callers hold the store's lock.

One kind marks an adapter that a client may register soon: an upload, or one that was there already.
The other is named by the digest of an upload that was normalised (see `stacked.store.plain`) and
has the digest that it is stored under: a client only knows the digest of its own files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from stacked.core import Digest
from stacked.store.disk import write_whole


class Notes:
    """A directory of notes."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, digest: Digest, text: str = "") -> None:
        """Write one, atomically."""
        write_whole(self._file(digest), text.encode())

    def get(self, digest: Digest) -> str | None:
        """What it says; None if there is none."""
        with contextlib.suppress(OSError, UnicodeError):
            return self._file(digest).read_text(encoding="ascii")
        return None

    def drop(self, digest: Digest) -> None:
        self._file(digest).unlink(missing_ok=True)

    def keep(self, needed: Callable[[Digest, str], bool]) -> None:
        """Remove those whose digest and text are not needed."""
        for name in os.listdir(self._directory):
            digest = Digest(f"sha256:{name}")
            if not needed(digest, self.get(digest) or ""):
                self.drop(digest)

    def _file(self, digest: Digest) -> Path:
        return self._directory / digest.removeprefix("sha256:")
