"""Folders of files: each once, immutable, under the digest of its content.

Other processes may use the same directory at once.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from stacked.core import Digest
from stacked.errors import AdapterAbsent
from stacked.store.archives import unpack_zip, zip_files
from stacked.store.digest import add_file
from stacked.store.disk import clear_workplaces, seal, usable, workplace
from stacked.store.limits import Limits
from stacked.store.shared import SharedContents
from stacked.store.shelf import Shelf, Stored


class FolderStore(ABC):
    """A directory of folders. Every method blocks, and may be called from any thread.

        root/<kind>s/<64 hex digits>/     one folder
        root/unpacking/<id>/              one being checked, of adapters root/staging/<id>/
        root/unpacking/<id>.lock          held while somebody works on it

    A folder appears in one rename, after all checks and after its bytes are on the disk: a crash at
    any instant leaves the whole of it or nothing.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        limits: Limits,
        shared: SharedContents | None,
        staging: str = "unpacking",
    ) -> None:
        """`kind`: what the folders are, in messages and reports.

        What is added goes to `shared` too, and what is absent comes from there. Raises
        StoreUnusable.
        """
        # Absolute, because vLLM takes a missing relative path for a Hub id.
        self.root = Path(root).absolute()
        self.limits = limits
        self.shared = shared
        self._kind = kind
        with self._usable():
            self._shelf = Shelf(self.root, f"{kind}s", self.root / staging)
            clear_workplaces(self._shelf.staging)

    def path(self, digest: str) -> Path:
        """The directory of a content, fetched if others have added it. Raises AdapterAbsent."""
        path = self._shelf.path(digest)
        if self.shared is not None and not path.is_dir():
            self._bring(Digest(digest), self.shared)
        if not path.is_dir():
            raise self._absent(digest)
        return path

    def contents(self) -> Iterator[Stored]:
        """Every content on the disk."""
        return self._shelf.contents(self._kind)

    def used_ns(self, digest: Digest) -> int | None:
        """When a content was last added; None if it is absent."""
        return self._shelf.used_ns(digest)

    def remove(self, stored: Stored) -> bool:
        """Remove a content; False if it was used since it was listed, or is in use."""
        with self._usable():
            return self._shelf.remove(stored)

    def tidy(self) -> None:
        """Remove what crashed processes left."""
        clear_workplaces(self._shelf.staging)

    @contextlib.contextmanager
    def _making(self) -> Iterator[Path]:
        """A private empty directory, removed afterwards unless it was stored."""
        with self._usable(), workplace(self._shelf.staging) as place:
            made = place / "made"
            made.mkdir()
            yield made

    def _keep(self, made: Path, digest: Digest) -> Path:
        """Store a directory that was checked, unless it is there; it counts as used now."""
        seal(made)
        with self._shelf.changing():
            path = self._shelf.place(made, digest)
            self._shelf.use(digest)
        self._share(digest)
        return path

    def _share(self, digest: Digest) -> None:
        """Have what was added here where other machines find it."""
        if self.shared is not None:
            with workplace(self._shelf.staging) as scratch:
                self.shared.put(f"{self._kind}s", digest, self._shelf.path(digest), scratch)

    def _bring(self, digest: Digest, shared: SharedContents) -> None:
        """Add what another machine has added, if one has."""
        with self._making() as made:
            archive = shared.fetch(f"{self._kind}s", digest, made.parent)
            if archive is None:
                return
            name = str(archive)
            names = zip_files(archive, self.limits, name)
            unpack_zip(archive, made, self.limits, name, names, PurePosixPath())
            if self._digest(made) != digest:
                raise shared.damaged(archive.name)
            self._keep(made, digest)

    @abstractmethod
    def _digest(self, made: Path) -> Digest:
        """What a directory is stored under. Raises AdapterError for one that is no such content."""

    def _absent(self, digest: str) -> AdapterAbsent:
        return AdapterAbsent(
            f"the store at {self.root} has no {self._kind} {digest}; upload it again"
        )

    def _usable(self) -> contextlib.AbstractContextManager[None]:
        return usable(self.root, f"the store of {self._kind}s")


def content_digest(directory: Path, form: bytes) -> Digest:
    """sha256 over every file, by its path, each framed by that and length as an adapter's are.

    `form` tells kinds of content, and versions of this definition, apart.
    """
    total = hashlib.sha256(form)
    names = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
    for name in sorted(names):
        if names[name].is_file():
            add_file(total, names[name], name)
    return Digest(f"sha256:{total.hexdigest()}")
