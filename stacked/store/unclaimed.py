"""Adapters that a client may register soon: an upload, or one that the store already had.

Callers hold the store's lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


class Unclaimed:
    """A directory with an empty file for each, named like the adapter."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def mark(self, name: str) -> None:
        (self.directory / name).touch()

    def claim(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self.directory / name).exists()

    def forget(self, there: Collection[str]) -> None:
        """Remove the marks of all but these."""
        for name in os.listdir(self.directory):
            if name not in there:
                self.claim(name)
