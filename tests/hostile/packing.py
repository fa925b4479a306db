"""How a mutant reaches the server: a directory or an archive, each also made hostile itself."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.hostile.draft import CONFIG, WEIGHTS, Files, flipped, pick

OUTSIDE = "outside.txt"
"""A file next to the mutants' directories, which nothing may read into an adapter or change."""
_LEADING_OUT = (
    "../x", f"../../{OUTSIDE}", "/tmp/stacked-hostile", "a/../../x", "..\\x", "C:\\x", "//host/x",
    "./../x", "a\0b", "..", "/", "", ".", "a/./../../x", "~/x", "\ud800", "n" * 300, "é" * 200,
    "a\r\nb", "\x1b[31m", "con", "-rf", "a/" * 500 + "x",
)  # fmt: skip


def as_directory(rng: random.Random, files: Files, into: Path) -> tuple[Path, str]:
    """A directory of these files, one in three with something in it that is no plain file."""
    directory = into / "adapter"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    if rng.random() < 0.65:
        return directory, "directory"
    return directory, pick(rng, _DIRECTORIES)(rng, directory)


def _link(rng: random.Random, directory: Path) -> str:
    name = pick(rng, (CONFIG, WEIGHTS, "tokenizer.json", "additional_chat_templates"))
    targets = (
        f"../../{OUTSIDE}", "/etc/passwd", "/dev/zero", "/proc/self/environ", name, "missing", "..",
        ".", CONFIG, f"../{directory.name}/{name}", "/proc/self/fd/0", "/dev/stdin", "a" * 200,
    )  # fmt: skip
    target = pick(rng, targets)
    place = directory / name
    if place.is_dir():
        return "a directory stays"
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    return f"{name} -> {target[:20]}"


def _no_file(rng: random.Random, directory: Path) -> str:
    name = pick(rng, (CONFIG, WEIGHTS, "tokenizer_config.json", "chat_template.jinja"))
    (directory / name).unlink(missing_ok=True)
    kind = pick(rng, ("fifo", "directory", "gone"))
    if kind == "fifo":
        os.mkfifo(directory / name)
    elif kind == "directory":
        (directory / name).mkdir()
    return f"{name} is a {kind}"


def _sparse(rng: random.Random, directory: Path) -> str:
    name = pick(rng, (CONFIG, WEIGHTS, "tokenizer.json", "added_tokens.json"))
    length = pick(rng, (2**20 + 1, 2**28, 2**31 + 1, 2**40))
    with (directory / name).open("ab") as file:
        file.truncate(length)
    return f"{name} of {length} bytes"


def _names(rng: random.Random, directory: Path) -> str:
    for name in (b"\xff\xfe", "😀".encode() * 60, b"a\r\nb", b"\x1b[2J", b"n" * 255):
        Path(os.fsdecode(bytes(directory) + b"/" + name)).write_bytes(b"")
    return "odd names"


def _many(rng: random.Random, directory: Path) -> str:
    count = pick(rng, (50, 500, 3000))
    folder = pick(rng, (directory, directory / "additional_chat_templates"))
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jinja").touch()
    return f"{count} files"


_DIRECTORIES: tuple[Callable[[random.Random, Path], str], ...] = (
    _link, _link, _no_file, _sparse, _names, _many,
)  # fmt: skip


def as_zip(rng: random.Random, files: Files, into: Path) -> tuple[Path, str]:
    """A zip of these files, two in three with a fault of its own."""
    into.mkdir(parents=True, exist_ok=True)
    path = into / "adapter.zip"
    method = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    folder = pick(rng, ("", "", "x/", "./", "x/y/"))
    what = rng.randrange(18)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(folder + name, content)
        how = _more_in_zip(rng, archive, folder, what)
    if what in (8, 9, 10, 11, 12):
        path.write_bytes(_torn_zip(rng, path.read_bytes(), what))
        how = f"zip torn {what}"
    return path, how


def _more_in_zip(rng: random.Random, archive: zipfile.ZipFile, folder: str, what: int) -> str:
    match what:
        case 0 | 1:
            name = pick(rng, _LEADING_OUT)
            try:
                archive.writestr(zipfile.ZipInfo(name or "?"), b"x")
            except UnicodeEncodeError:
                archive.writestr("?", b"x")
            return f"zip with {name[:20]!r}"
        case 2:
            info = zipfile.ZipInfo(folder + pick(rng, (CONFIG, "notes")))
            kinds = (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)
            info.external_attr = (pick(rng, kinds) | 0o777) << 16
            archive.writestr(info, f"../../{OUTSIDE}")
            return "zip with a link or device"
        case 3:
            archive.writestr(f"{folder}./{CONFIG}", b"{}")
            return "zip with a name twice"
        case 4:
            archive.writestr("zeros", bytes(pick(rng, (2**20, 2**25))), zipfile.ZIP_DEFLATED)
            return "zip bomb"
        case 5:
            for number in range(pick(rng, (999, 1500, 5000))):
                archive.writestr(f"{number}", b"")
            return "zip of many"
        case 6:
            inner = io.BytesIO()
            with zipfile.ZipFile(inner, "w") as nest:
                nest.writestr(CONFIG, b"{}")
            archive.writestr("nested.zip", inner.getvalue())
            return "zip in a zip"
        case 7:
            archive.comment = bytes(pick(rng, (1, 65535)))
            return "zip with a comment"
    return "zip"


def _torn_zip(rng: random.Random, content: bytes, what: int) -> bytes:
    """A zip whose parts contradict each other."""
    central = content.rfind(b"PK\x01\x02")
    end = content.rfind(b"PK\x05\x06")
    match what:
        case 8:
            return flipped(rng, content)
        case 9:
            return content[: rng.randrange(len(content))]
        case 10:  # a declared size, method or flag of one member
            at, form, values = pick(
                rng,
                (
                    (20, "<I", (0, 1, 2**31, 2**32 - 1)),
                    (24, "<I", (0, 1, 2**31, 2**32 - 1)),
                    (10, "<H", (1, 6, 9, 99, 65535)),
                    (8, "<H", (1, 0x41, 65535)),
                    (42, "<I", (0, 1, 2**31, 2**32 - 1)),
                    (28, "<H", (0, 1, 65535)),
                ),
            )
            value = struct.pack(form, pick(rng, values))
            return content[: central + at] + value + content[central + at + len(value) :]
        case 11:  # the end of the directory
            at, form = pick(rng, ((8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<H")))
            size = struct.calcsize(form)
            value = rng.getrandbits(8 * size).to_bytes(size, "little")
            return content[: end + at] + value + content[end + at + size :]
    return pick(rng, (b"#!/bin/sh\n" * 9 + content, content + b"x" * 30, content * 2, content[1:]))


def as_tar(rng: random.Random, files: Files, into: Path) -> tuple[Path, str]:
    """A tar of these files, plain or compressed, two in three with a fault of its own."""
    into.mkdir(parents=True, exist_ok=True)
    how, buffer = "tar", io.BytesIO()
    folder = pick(rng, ("", "", "x/", "./"))
    form = pick(rng, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if rng.random() < 0.5:
            how = _more_in_tar(rng, archive, folder)
    content = buffer.getvalue()
    if rng.random() < 0.2:
        content, how = _torn_tar(rng, content), "tar torn"
    packed = pick(rng, _COMPRESSIONS)(content)
    if rng.random() < 0.15:
        packed, how = flipped(rng, packed), "compressed tar flipped"
    path = into / "adapter.tar"
    path.write_bytes(packed)
    return path, how


def _more_in_tar(rng: random.Random, archive: tarfile.TarFile, folder: str) -> str:
    info = tarfile.TarInfo(folder + pick(rng, (CONFIG, WEIGHTS, "notes")))
    match rng.randrange(6):
        case 0 | 1:
            kinds = (
                tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
                tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z", b"\0",
            )  # fmt: skip
            info.type, info.linkname = (
                pick(rng, kinds),
                pick(rng, (f"../../{OUTSIDE}", "/etc/passwd")),
            )
        case 2:
            name = pick(rng, _LEADING_OUT).encode("utf-8", "replace").decode()
            info.name = name or "?"
        case 3:
            info.size = 2**25
            archive.addfile(info, io.BytesIO(bytes(info.size)))
            return "tar bomb"
        case 4:
            values = ("-1", "x", str(2**70), "9" * 5000, f"../../{OUTSIDE}", "1e9", "\0")
            key = pick(rng, ("size", "path", "linkpath", "mtime", "hdrcharset", "GNU.sparse.size"))
            info.pax_headers = {key: pick(rng, values)}
        case _:
            info.name = "n" * pick(rng, (101, 256, 9000, 100_000))
    try:
        archive.addfile(info)
    except ValueError:  # this format cannot hold it
        return "tar"
    return f"tar with {info.type!r} {info.name[:20]!r}"


def _torn_tar(rng: random.Random, content: bytes) -> bytes:
    size = pick(rng, (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1\0", b"zzz\0"))
    return pick(
        rng,
        (
            flipped(rng, content),
            content[: rng.randrange(len(content))],
            _resummed(content[:124] + size + content[136:]),
            content + content,
            content[512:],
        ),
    )


def _resummed(content: bytes) -> bytes:
    """With the first header's checksum corrected."""
    blank = content[:148] + b" " * 8 + content[156:512]
    return content[:148] + b"%06o\0 " % sum(blank) + content[156:]


def _two_streams(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half], 1) + gzip.compress(content[half:], 1) + b"\0" * 40


def _bzip2(content: bytes) -> bytes:
    import bz2

    return bz2.compress(content, 1)


def _xz(content: bytes) -> bytes:
    import lzma

    return lzma.compress(content, preset=0)


_COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (
    bytes, bytes, lambda content: gzip.compress(content, 1), _two_streams, _bzip2, _xz,
    zlib.compress,
)  # fmt: skip
