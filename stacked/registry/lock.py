"""One process per data directory: a lock that lasts as long as the process that took it.

It must not know what stands in the directory.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO

from stacked.errors import DataDirInUse, RegistryUnusable

FILE = "server.lock"


class DataDirLock:
    """The right to serve from a data directory; `release`, or the end of the process, gives it up.

    The kernel frees the lock when the process dies, however it dies. Children do not inherit it:
    an engine process that outlives a killed server must not keep the next server out.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        held = weakref.ref(file)

        def let_go() -> None:
            file = held()
            if file is not None:
                file.close()

        os.register_at_fork(after_in_child=let_go)  # exec closes it by itself

    def release(self) -> None:
        """Give the lock up. Twice is once."""
        self._file.close()

    def __enter__(self) -> DataDirLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_data_dir(path: Path) -> DataDirLock:
    """Lock the directory, made where it is absent, for this process. Keep what is returned.

    Raises DataDirInUse, with the pid that holds it, or RegistryUnusable.
    """
    place = Path(path) / FILE
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Never unlinked: a lock on a file that has lost its name would keep nobody out.
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
        file.close()
        raise RegistryUnusable(
            f"the data directory {path} cannot be locked: {error}; choose another"
        ) from error
    return DataDirLock(file)
