"""Bases that were uploaded: each once, checked, immutable, under the digest of its content.

Other processes may use the same directory at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from stacked.core import Digest
from stacked.errors import AdapterAbsent, ArchiveInvalid, BaseNotFound
from stacked.store.base import BaseModules
from stacked.store.digest import add_file
from stacked.store.disk import clear_workplaces, seal, usable, workplace
from stacked.store.limits import Limits
from stacked.store.shelf import Shelf, Stored
from stacked.store.uploads import BASE_LIMITS, unpack_base

_FORMAT = b"stacked base 1\n"


class BaseStore:
    """A directory of bases. Every method blocks, and may be called from any thread.

        root/bases/<64 hex digits>/       one base, as transformers saves it
        root/unpacking/<id>/              one being checked

    A base appears in one rename, after all checks and after its bytes are on the disk.
    """

    def __init__(self, root: Path, limits: Limits = BASE_LIMITS) -> None:
        """Raises StoreUnusable."""
        self.root = Path(root).absolute()
        self.limits = limits
        with usable(self.root, "the store of bases"):
            self._shelf = Shelf(self.root, "bases", self.root / "unpacking")
            self.tidy()

    def add(self, archive: Path, name: str) -> tuple[Digest, int]:
        """Unpack, check and store the base in a zip; its digest, and the bytes of its weights.

        `name` is the zip's name in messages. Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
        """
        with usable(self.root, "the store of bases"), workplace(self._shelf.staging) as place:
            made = place / "base"
            made.mkdir()
            unpack_base(archive, made, self.limits, name)
            try:
                BaseModules.read(made)
            except BaseNotFound as error:
                said = str(error).replace(f"{made}/", "")
                raise ArchiveInvalid(f"{name} holds no base that can be read: {said}") from error
            digest = base_content_digest(made)
            weights = sum(file.stat().st_size for file in made.glob("*.safetensors"))
            seal(made)
            with self._shelf.changing():
                self._shelf.place(made, digest)
                self._shelf.use(digest)
            return digest, weights

    def path(self, digest: str) -> Path:
        """The directory of a base. Raises AdapterAbsent."""
        path = self._shelf.path(digest)
        if not path.is_dir():
            raise AdapterAbsent(f"the store at {self.root} has no base {digest}; upload it again")
        return path

    def contents(self) -> Iterator[Stored]:
        """Every base on the disk."""
        return self._shelf.contents("base")

    def remove(self, stored: Stored) -> bool:
        """Remove a base; False if it was used since it was listed, or is in use."""
        with usable(self.root, "the store of bases"):
            return self._shelf.remove(stored)

    def tidy(self) -> None:
        """Remove what crashed processes left."""
        clear_workplaces(self._shelf.staging)


def base_content_digest(directory: Path) -> Digest:
    """sha256 over every file, by name, each framed by name and length as an adapter's are."""
    total = hashlib.sha256(_FORMAT)
    for file in sorted(directory.iterdir()):
        add_file(total, file, file.name)
    return Digest(f"sha256:{total.hexdigest()}")
