"""A directory as a zip, in parts."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

# Without meaning, but always the same: the earliest time that a zip can have.
_MOMENT = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


def packed(directory: Path) -> Iterator[bytes]:
    """A directory's files as a zip, about 1 MB at a time; the bytes are reproducible."""
    written = _Written()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(file.relative_to(directory).as_posix(), _MOMENT)
            info.external_attr = 0o100644 << 16
            info.create_system = 3  # Unix, on every machine
            info.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(info, "w") as member:
                while chunk := source.read(_CHUNK):
                    member.write(chunk)
                    yield written.taken()
    yield written.taken()


class _Written:
    """What zipfile needs to write without seeking; holds the bytes until they are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def flush(self) -> None: ...

    def close(self) -> None: ...
