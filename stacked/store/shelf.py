"""A directory of content by digest: what is there, when it was last used, and its safe removal.

Adding, using and removing content exclude each other by one lock, across threads and processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stacked.core import Digest
from stacked.errors import AdapterAbsent
from stacked.store.disk import flush, locked, workplace

_HEX = re.compile(r"[0-9a-f]{64}")
_pin: ContextVar[IO[bytes] | None] = ContextVar("pin", default=None)


@dataclass(frozen=True, slots=True)
class Stored:
    """One content of a shelf. `used_ns`: when it was last added, claimed or requested."""

    kind: str
    digest: Digest
    bytes: int
    used_ns: int
    awaited: bool = False
    """It was uploaded, or its presence confirmed, for a client that has not registered it yet."""


class Shelf:
    """`root/<name>/<64 hex digits>/`: each directory appears and disappears in one rename.

        root/lock             held while any shelf of this root changes
        root/pins/<id>        digests that a running operation needs, locked while it runs
        staging/<id>/         content being added or removed; see `stacked.store.disk.workplace`

    A directory's modification time is when its content was last used.
    """

    def __init__(self, root: Path, name: str, staging: Path) -> None:
        self.root = root
        self.directory = root / name
        self.staging = staging
        for directory in (self.directory, staging, root / "pins"):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """The path of a content, if present. Raises AdapterAbsent for anything but a digest."""
        name = digest.removeprefix("sha256:")
        if not _HEX.fullmatch(name):
            raise AdapterAbsent(f"{digest!r} is not a digest (sha256: and 64 hex digits)")
        return self.directory / name

    def digests(self) -> list[Digest]:
        names = sorted(name for name in os.listdir(self.directory) if _HEX.fullmatch(name))
        return [Digest(f"sha256:{name}") for name in names]

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Within the block no other thread or process adds, uses or removes content."""
        with locked(self.root / "lock"):
            yield

    def use(self, digest: str) -> bool:
        """Whether it is present; if so it counts as used now, and `pinned` operations protect it.

        Hold `changing`.
        """
        now = time.time_ns()  # finer than the kernel's own timestamps: two uses always differ
        try:
            os.utime(self.path(digest), ns=(now, now))
        except FileNotFoundError:
            return False
        file = _pin.get()
        if file is not None:
            file.write(f"{digest}\n".encode())
            file.flush()
        return True

    def place(self, made: Path, digest: Digest) -> Path:
        """Move a sealed directory here under its digest, unless that is there. Hold `changing`."""
        path = self.path(digest)
        if not path.is_dir():
            made.chmod(0o755)  # a directory that moves has its `..` written
            made.rename(path)
            path.chmod(0o555)
            flush(path.parent)
        return path

    def used_ns(self, digest: Digest) -> int | None:
        """When a content was last added or used; None if it is absent."""
        with contextlib.suppress(FileNotFoundError):
            return self.path(digest).stat().st_mtime_ns
        return None

    def contents(self, kind: str) -> Iterator[Stored]:
        """Every content; those removed meanwhile are left out."""
        for digest in self.digests():
            with contextlib.suppress(FileNotFoundError):
                total = sum(file.stat().st_size for file in self.path(digest).rglob("*"))
                yield Stored(kind, digest, total, self.path(digest).stat().st_mtime_ns)

    def remove(self, stored: Stored) -> bool:
        """Remove a content, unless it was used since it was listed or is pinned.

        The rename removes it; a crash afterwards leaves a workplace, which is cleared later.
        """
        path = self.path(stored.digest)
        with workplace(self.staging) as place, self.changing():
            unused = path.is_dir() and path.stat().st_mtime_ns == stored.used_ns
            if not unused or stored.digest in pins(self.root):
                return False
            self.move_away(path, place)
        return True

    def move_away(self, path: Path, place: Path) -> None:
        """Out of the shelf in one rename, into a workplace that is cleared afterwards."""
        path.chmod(0o755)  # a directory that moves has its `..` written
        path.rename(place / f"removed-{uuid.uuid4().hex}")
        flush(self.directory)


@contextlib.contextmanager
def pinned(root: Path) -> Iterator[None]:
    """Content that this context uses at `root` is not removed until the block ends.

    For the time between adding content and recording it. Threads started with a copy of this
    context (`asyncio.to_thread`) pin too.
    """
    path = root / "pins" / uuid.uuid4().hex
    with locked(path) as file:
        token = _pin.set(file)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # closed by another task than entered it
                _pin.reset(token)
            path.unlink(missing_ok=True)


def pins(root: Path) -> frozenset[Digest]:
    """The digests that running operations need; those of dead processes are forgotten."""
    found: set[str] = set()
    for path in (root / "pins").iterdir():
        with locked(path, wait=False) as file:
            if file is not None:
                path.unlink(missing_ok=True)
                continue
        with contextlib.suppress(FileNotFoundError):
            found.update(path.read_text(encoding="ascii").split())
    return frozenset(map(Digest, found))
