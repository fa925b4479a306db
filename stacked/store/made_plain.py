"""The digest under which a normalised upload is stored, see `stacked.store.plain`.

A client that sends an adapter only knows the digest of its own files; with that, the store finds
what it made of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from stacked.core import Digest

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class MadePlain:
    """A directory of small files: named by the digest sent, containing the one stored."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, came: Digest, kept: Digest) -> None:
        """Record one, atomically."""
        self._directory.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as part:
            part.write(kept.encode())
        os.replace(part.name, self._file(came))

    def get(self, digest: Digest) -> Digest:
        """The digest this one is stored under: another, or itself."""
        if not _DIGEST.fullmatch(digest):
            return digest
        with contextlib.suppress(OSError, UnicodeError):
            kept = self._file(digest).read_text(encoding="ascii")
            if _DIGEST.fullmatch(kept):
                return Digest(kept)
        return digest

    def forget(self, there: Collection[str]) -> None:
        """Remove what does not lead to one of these names."""
        if not self._directory.is_dir():
            return
        for file in self._directory.iterdir():
            if file.read_bytes().decode("ascii", "replace").removeprefix("sha256:") not in there:
                file.unlink(missing_ok=True)

    def _file(self, digest: Digest) -> Path:
        return self._directory / digest.removeprefix("sha256:")
