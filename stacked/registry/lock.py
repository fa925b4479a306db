"""One process per data directory: a lock that the process holds until it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path
from typing import IO

from stacked.errors import DataDirInUse, RegistryUnusable

FILE = "server.lock"


def lock_data_dir(path: Path) -> IO[str]:
    """Lock the directory, creating it if needed. Keep the file: closing it releases the lock.

    The kernel frees the lock when the process dies, however it dies. Children do not inherit it:
    an engine process that outlives a killed server must not keep the next server out.

    Raises DataDirInUse, with the pid that holds it, or RegistryUnusable.
    """
    place = Path(path) / FILE
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Never unlinked: a lock on a file without a name would exclude no one.
        file = place.open("a+", encoding="utf-8")
    except OSError as error:
        raise RegistryUnusable(
            f"the data directory {path} cannot be used: {error}; choose another"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise DataDirInUse(
            f"another process (pid {holder}) serves from {path}; stop it, or choose another data "
            "directory"
        ) from error
    except OSError as error:
        with contextlib.suppress(OSError):  # what could not be written is tried once more
            file.close()
        raise RegistryUnusable(
            f"the data directory {path} cannot be locked: {error}; choose another"
        ) from error
    _close_in_children(file)
    return file


def _close_in_children(file: IO[str]) -> None:
    """For `fork`; `exec` closes it anyway."""
    held = weakref.ref(file)

    def close() -> None:
        file = held()
        if file is not None:
            file.close()

    os.register_at_fork(after_in_child=close)
