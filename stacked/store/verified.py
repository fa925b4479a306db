"""Which adapters have passed their canary on one kind of engine, by digest."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Container, Iterable
from pathlib import Path

from stacked.core import Digest
from stacked.store.disk import write_whole

logger = logging.getLogger(__name__)

_LINE = re.compile(r"sha256:[0-9a-f]{64}")


class Verified:
    """A file of digests, one a line. Thread-safe; processes may share it.

    A line is written in one piece; one that a crash cut short is no digest and counts for nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writing = threading.Lock()
        self._known: set[Digest] = set()
        with contextlib.suppress(OSError):
            self._known = _read(file)
            os.utime(file)  # an engine of this kind is being started

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._known

    def add(self, digests: Iterable[Digest]) -> None:
        """Record these. If the disk fails, they are verified again another time."""
        with self._writing:
            new = [digest for digest in digests if digest not in self._known]
            if not new:
                return
            self._known.update(new)
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("ab", buffering=0) as file:
                    # The newline before it ends a line that was cut short.
                    file.write("".join(f"\n{digest}\n" for digest in new).encode())
            except OSError as error:
                logger.warning("%s cannot be written: %s", self._file, error)


def forget_verified(file: Path, there: Container[Digest]) -> None:
    """Drop the digests that are not `there`. A line that is added meanwhile may be lost."""
    with contextlib.suppress(OSError):
        known = _read(file)
        stays = [digest for digest in known if digest in there]
        if len(stays) < len(known):
            write_whole(file, "".join(f"{digest}\n" for digest in sorted(stays)).encode())


def _read(file: Path) -> set[Digest]:
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    return {Digest(line) for line in lines if _LINE.fullmatch(line)}
