"""Zip and tar archives: unpacks the required files of one, and trusts nothing.

An archive with one unsafe member is refused whole, even if that member would not be unpacked.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from stacked.chat.templates import MORE_TEMPLATES
from stacked.errors import AdapterTooLarge, ArchiveInvalid, PathUnsafe
from stacked.store.files import (
    CONFIG_FILE,
    WANTED,
    Readable,
    is_read,
    most_bytes,
    require_wanted,
    write_copy,
)
from stacked.store.limits import MIB, Limits
from stacked.store.text import quoted, size

_XZ_MEMORY = 256 * MIB  # `xz -9` needs 65 MiB; a header can ask for 4 GiB
_ONE_READ = 2 * MIB
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_EXTENDED_BYTES = 8192
_LONGEST = 255  # bytes of a name on Linux's file systems
_DEEPEST = 32  # each level costs a call and an open file where a tree is removed
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # zip: a compression or encryption that Python lacks
    RuntimeError,  # zip: a password is needed
    ValueError,
    LookupError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry: `open` returns its bytes, or is None for a directory."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None] | None


def unpack(archive: Path, target: Path, scratch: Path, limits: Limits, name: str) -> None:
    """Unpack the adapter at the top of an archive, or in its only top-level folder.

    `scratch` is a directory for our use only, `name` is the archive's name in messages. Raises
    ArchiveInvalid, PathUnsafe, AdapterTooLarge, FileMissing, PickleRefused.
    """
    with _readable(name, "zip, tar, tar.gz, tar.bz2 or tar.xz"), archive.open("rb") as file:
        if zipfile.is_zipfile(file):
            file.seek(0)
            folders = _take(_zip_members(file), archive, scratch, limits)
        else:
            with _plain_tar(file, scratch, limits) as plain:
                folders = _take(_tar_members(plain), archive, scratch, limits)
    folder = _chosen(folders, name)
    for wanted, place in folders[folder].items():
        if place.exists():
            (target / wanted).parent.mkdir(exist_ok=True)
            place.rename(target / wanted)


def zip_files(archive: Path, limits: Limits, name: str) -> dict[PurePosixPath, int]:
    """The files of a zip and their declared sizes, all safe and within the limits.

    Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
    """
    with _readable(name, "zip"), archive.open("rb") as file:
        listed = _checked(_zip_members(file), archive.stat().st_size, limits)
        return {path: member.size for path, member in listed if member.open is not None}


def unpack_zip(
    archive: Path,
    target: Path,
    limits: Limits,
    name: str,
    wanted: Collection[PurePosixPath],
    folder: PurePosixPath,
) -> None:
    """Unpack these files of a zip into `target`, each under its name in `folder`.

    Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
    """
    with _readable(name, "zip"), archive.open("rb") as file:
        for path, member in _checked(_zip_members(file), archive.stat().st_size, limits):
            reader = member.open() if member.open is not None and path in wanted else None
            if reader is not None:
                place = target / path.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                with reader:
                    write_copy(reader, place, limits.max_bytes, member.name, member.size)


@contextlib.contextmanager
def _readable(name: str, kinds: str) -> Iterator[None]:
    """What the readers raise for damaged data, as one error."""
    try:
        yield
    except (*_BROKEN, OSError) as error:
        # gzip and bz2 raise OSError for damaged data, and an impossible offset is EINVAL; any other
        # number is a failure of our own disk.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveInvalid(
            f"{name} cannot be read as a {kinds} ({str(error)[:200]}); pack its directory again"
        ) from error


def _checked(
    members: Iterator[_Member], packed: int, limits: Limits
) -> Iterator[tuple[PurePosixPath, _Member]]:
    """Every member with its path: safe, unique, and within the limits so far."""
    seen: set[PurePosixPath] = set()
    total = 0
    for count, member in enumerate(members, start=1):
        if count > limits.max_members:
            raise AdapterTooLarge(f"the archive has more than {limits.max_members} members")
        path = _safe_path(member.name)
        total += member.size
        _check_total(total, packed, limits)
        if member.open is not None and path.parts:
            if path in seen:
                raise ArchiveInvalid(
                    f"{quoted(member.name)} is in the archive twice; pack it again"
                )
            seen.add(path)
        yield path, member


def _take(
    members: Iterator[_Member], archive: Path, scratch: Path, limits: Limits
) -> dict[str, dict[str, Path]]:
    """Check every member and unpack the required ones: folder -> file name -> its new path.

    Other files are listed, for the hints in refusals, but not unpacked.
    """
    folders: dict[str, dict[str, Path]] = {}
    listed = _checked(members, archive.stat().st_size, limits)
    for count, (path, member) in enumerate(listed, start=1):
        if member.open is None or not path.parts:
            continue
        *above, name = path.parts
        if above[-1:] == [MORE_TEMPLATES]:
            name = f"{above.pop()}/{name}"
        if len(above) > 1:
            continue
        place = folders.setdefault("".join(above), {})[name] = scratch / f"member-{count}"
        if is_read(name) and (reader := member.open()) is not None:
            with reader:
                write_copy(reader, place, most_bytes(name, limits), member.name, member.size)
    return folders


def _chosen(folders: dict[str, dict[str, Path]], name: str) -> str:
    """The adapter's folder: the top, otherwise the only one with an adapter's config."""
    top = folders.get("", {})
    candidates = [folder for folder, files in folders.items() if CONFIG_FILE in files]
    if "" in candidates or not candidates:
        # Without any config, a listing with files in it is the most useful.
        files = top or (next(iter(folders.values())) if len(folders) == 1 else {})
        require_wanted(files, name)
        return ""
    if len(candidates) > 1:
        raise ArchiveInvalid(
            f"{name} holds {len(candidates)} adapters ({', '.join(map(quoted, candidates[:5]))}); "
            "pack each on its own"
        )
    require_wanted(folders[candidates[0]], name)
    return candidates[0]


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    drive = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or drive:
        raise PathUnsafe(
            f"the archive has a member named {quoted(name)}, which leads out of it; "
            "pack its directory again, with plain relative names"
        )
    if len(path.parts) > _DEEPEST or any(len(os.fsencode(part)) > _LONGEST for part in path.parts):
        raise PathUnsafe(
            f"the archive has a member named {quoted(name, 80)}…, which is longer or deeper than "
            f"files may be ({_LONGEST} bytes a name, {_DEEPEST} folders)"
        )
    return path


def _unsafe_kind(name: str, kind: str) -> PathUnsafe:
    return PathUnsafe(
        f"the archive's member {quoted(name)} is a {kind}; only files and directories may be in "
        "it (tar: --dereference packs the files that links point at)"
    )


def _check_total(total: int, packed: int, limits: Limits) -> None:
    if total > limits.max_bytes:
        raise AdapterTooLarge(
            f"the archive unpacks to more than {size(limits.max_bytes)}; "
            f"pack only {' and '.join(WANTED)}"
        )
    if total > limits.ratio_floor and total > limits.max_ratio * packed:
        raise AdapterTooLarge(
            f"the archive has {size(packed)} and unpacks to more than {limits.max_ratio} times "
            "that, like a zip bomb; give the adapter as a directory"
        )


class _Careful(io.BufferedReader):
    """Refuses single large reads: zipfile reads a whole directory of any declared size."""

    def read(self, count: int | None = -1, /) -> bytes:
        if count is not None and count > _ONE_READ:
            raise AdapterTooLarge("the archive's own directory is far too large")
        return super().read(count)


class _CarefulTarInfo(tarfile.TarInfo):
    """Refuses long extended headers, which tarfile holds in memory and searches slowly."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _EXTENDED_BYTES:
            raise AdapterTooLarge("the archive has an extended header that is far too large")
        # Meant to be overridden, says tarfile.py, but absent from the type stubs.
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(_Careful(io.FileIO(file.fileno(), closefd=False))) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe_kind(info.filename, "link" if stat.S_ISLNK(kind) else "special file")
            if info.is_dir():
                yield _Member(info.filename, 0, None)
            else:
                # The raw name: zipfile cuts `filename` at a NUL.
                yield _Member(info.orig_filename, info.file_size, partial(archive.open, info))


def _tar_members(file: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_CarefulTarInfo) as archive:
        for info in archive:
            if info.isdir():
                yield _Member(info.name, 0, None)
            elif info.isreg() and not info.issparse():
                yield _Member(info.name, info.size, partial(archive.extractfile, info))
            else:
                kinds = ((info.issym(), "link"), (info.islnk(), "hard link"))
                kind = next((name for is_it, name in kinds if is_it), "special file")
                raise _unsafe_kind(info.name, kind)


def _plain_tar(file: IO[bytes], scratch: Path, limits: Limits) -> IO[bytes]:
    """A plain tar, or a compressed one inflated into `scratch` within the limits."""
    packed = file.seek(0, io.SEEK_END)
    file.seek(0)
    magic = file.read(6)
    file.seek(0)
    reader: Readable
    if magic.startswith(b"\x1f\x8b"):
        reader = gzip.GzipFile(fileobj=file)
    elif magic.startswith(b"BZh"):
        reader = bz2.BZ2File(file)
    elif magic == b"\xfd7zXZ\x00":
        reader = _Xz(file)
    else:
        return file
    most = min(limits.max_bytes, max(limits.ratio_floor, limits.max_ratio * packed))
    # What a tar adds to its members: a header for each, padding, and the end.
    most += (limits.max_members + 64) * 2048
    place = scratch / "inflated.tar"
    write_copy(reader, place, most, "the archive, unpacked,")
    return place.open("rb")


class _Xz:
    """Reads xz with a limit on memory, which lzma.open does not have."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, count: int = -1, /) -> bytes:
        """At least one and at most `count` bytes; none at the end."""
        data = b""
        while not data and not self._stream.eof:
            packed = self._raw.read(count) if self._stream.needs_input else b""
            if self._stream.needs_input and not packed:
                raise EOFError("the xz stream was cut short")
            data = self._stream.decompress(packed, count)
        return data
