"""Under which digest an upload is kept that was not plain: as `stacked.store.plain` made it.

Who sends an adapter knows the digest of what stands on its disk alone; asked for by that, the store
finds what it has made of it.
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
    """A directory of small files: named by the digest that came, holding the one that is kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, came: Digest, kept: Digest) -> None:
        """Remember one; whole or not at all."""
        self._directory.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as part:
            part.write(kept.encode())
        os.replace(part.name, self._file(came))

    def get(self, digest: Digest) -> Digest:
        """What is kept of this one: another, or itself."""
        if not _DIGEST.fullmatch(digest):
            return digest
        with contextlib.suppress(OSError, UnicodeError):
            kept = self._file(digest).read_text(encoding="ascii")
            if _DIGEST.fullmatch(kept):
                return Digest(kept)
        return digest

    def forget(self, there: Collection[str]) -> None:
        """Drop what does not lead to one of these names."""
        if not self._directory.is_dir():
            return
        for file in self._directory.iterdir():
            if file.read_bytes().decode("ascii", "replace").removeprefix("sha256:") not in there:
                file.unlink(missing_ok=True)

    def _file(self, digest: Digest) -> Path:
        return self._directory / digest.removeprefix("sha256:")
