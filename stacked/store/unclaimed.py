"""Which adapters of a store came by an upload and were never needed: what may be cleared away.

It must not know why one is needed. Callers hold the store's lock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

UPLOAD_SECONDS = 24 * 3600.0
"""How long an upload waits for whoever sent it to say what it is for; that takes seconds."""


class Unclaimed:
    """An empty file for each of them, named like the adapter, and as old as its last upload."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def mark(self, name: str) -> None:
        (self.directory / name).touch()

    def renew(self, name: str) -> None:
        """As if it had just come, where it is unclaimed at all."""
        if (self.directory / name).exists():
            self.mark(name)

    def claim(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def older_than(self, seconds: float) -> list[str]:
        """Those whose last upload was that long ago."""
        limit = time.time() - seconds
        with os.scandir(self.directory) as entries:
            return sorted(entry.name for entry in entries if entry.stat().st_mtime <= limit)
