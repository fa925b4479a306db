"""Bases that were uploaded: each once, checked, immutable, under the digest of its content."""

from __future__ import annotations

from pathlib import Path

from stacked.core import Digest
from stacked.errors import ArchiveInvalid, BaseNotFound
from stacked.store.base import BaseModules
from stacked.store.folders import FolderStore, content_digest
from stacked.store.limits import Limits
from stacked.store.shared import SharedContents
from stacked.store.uploads import BASE_LIMITS, unpack_base

_FORMAT = b"stacked base 1\n"


class BaseStore(FolderStore):
    """A directory of bases, each as transformers saves it."""

    def __init__(
        self, root: Path, limits: Limits = BASE_LIMITS, shared: SharedContents | None = None
    ) -> None:
        """Raises StoreUnusable."""
        super().__init__(root, "base", limits, shared)

    def add(self, archive: Path, name: str) -> tuple[Digest, int]:
        """Unpack, check and store the base in a zip; its digest, and the bytes of its weights.

        `name` is the zip's name in messages. Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
        """
        with self._making() as made:
            unpack_base(archive, made, self.limits, name)
            try:
                BaseModules.read(made)
            except BaseNotFound as error:
                said = str(error).replace(f"{made}/", "")
                raise ArchiveInvalid(f"{name} holds no base that can be read: {said}") from error
            weights = sum(file.stat().st_size for file in made.glob("*.safetensors"))
            digest = self._digest(made)
            self._keep(made, digest)
            return digest, weights

    def _digest(self, made: Path) -> Digest:
        return content_digest(made, _FORMAT)
