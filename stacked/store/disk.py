"""What a crash-safe directory needs of the disk: locks, workplaces, flushes, removals."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stacked.errors import StoreUnusable
from stacked.store.text import size

SPARE = 256 * 1024 * 1024
"""Left free: records and logs are written to the same disk."""


@contextlib.contextmanager
def usable(root: Path, what: str) -> Iterator[None]:
    """Raises errors of our own disk as StoreUnusable; those of sources are refusals already."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StoreUnusable(
            f"{what} at {root} cannot be used: {error}; "
            + ("free some space" if full else "check its permissions")
            + ", or choose another data directory"
        ) from error


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """Hold an advisory lock on a file; None if it is held elsewhere and `wait` is false."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            yield None
            return
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # it was unlinked between opening and locking: lock the new one
    with file:
        yield file


def flush(path: Path) -> None:
    """Make sure that a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file, in place of an earlier one, so that readers find one or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        part.write(data)
    os.replace(part.name, path)


def seal(directory: Path) -> None:
    """Make all that is in a directory read-only, and make sure that it is on the disk."""
    for path in directory.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
        flush(path)
    flush(directory)


def check_room(place: Path, needed: int, what: str) -> None:
    """Raise StoreUnusable where there is no room for so many bytes, before any is written."""
    free = shutil.disk_usage(place).free
    if needed + SPARE > free:
        raise StoreUnusable(
            f"there is no room for {what} ({size(needed)}) at {place}, where {size(free)} are free "
            f"and {size(SPARE)} stay free; free some space, or choose another data directory"
        )


def clear(directory: Path) -> None:
    """Remove a directory and its content, including read-only directories."""
    if not directory.is_dir():
        return
    for place, _, _ in os.walk(directory):
        os.chmod(place, 0o755)
    shutil.rmtree(directory)


@contextlib.contextmanager
def workplace(staging: Path) -> Iterator[Path]:
    """A new private directory in `staging`, removed afterwards and locked while in use."""
    name = uuid.uuid4().hex
    with locked(staging / f"{name}.lock") as file:
        assert file is not None
        place = staging / name
        place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            clear(place)
            Path(file.name).unlink(missing_ok=True)


def clear_workplaces(staging: Path) -> None:
    """Remove those whose lock is free: their process has ended."""
    for name in sorted({name.removesuffix(".lock") for name in os.listdir(staging)}):
        lock = staging / f"{name}.lock"
        with locked(lock, wait=False) as file:
            if file is None:
                continue
            clear(staging / name)
            lock.unlink(missing_ok=True)
