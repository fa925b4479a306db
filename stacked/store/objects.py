"""Files of object stores, through fsspec: its libraries find addresses and credentials by
themselves, in the environment, their own files, or the machine's role.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from stacked.errors import AdapterTooLarge, SourceNotFound, SourceRefused, SourceUnreachable
from stacked.logs import shown_text, shown_url
from stacked.store.disk import check_room
from stacked.store.limits import MIB, Limits
from stacked.store.text import size

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "oci": "ocifs", "az": "adlfs", "abfs": "adlfs"}
"""What reads the addresses of a scheme; the extra `stacked[s3]` and so on installs it."""

_CHUNK = 8 * MIB  # within the longest silence, even at 300 KB/s
_AT_ONCE = 4

T = TypeVar("T")


def scheme_of(source: str) -> str | None:
    """The scheme of an address in an object store; None for anything else."""
    scheme = source.partition("://")[0].lower()
    return scheme if "://" in source and scheme in LIBRARIES else None


def download(
    url: str,
    place: Path,
    limits: Limits,
    patterns: Sequence[str],
    least: Sequence[str] = (),
    *,
    reuse: bool = False,
) -> Path:
    """Fetch the file at `url`, or those below it of these names, to `place`, which is returned.

    A pattern has at most one folder. Without files of all patterns of `least` nothing is fetched.
    `reuse` a session of this thread, which takes a fifth of a second to make.
    Raises SourceNotFound, SourceRefused, SourceUnreachable, AdapterTooLarge, StoreUnusable.
    """
    objects = _Objects(url, limits, reuse)
    top = objects.call(objects.store.info)
    alone = top["type"] == "file"
    files = {"": int(top["size"])} if alone else objects.matching(patterns)
    for pattern in () if alone else least:
        if not any(fnmatch(name, pattern) for name in files):
            raise SourceNotFound(f"{objects.shown} has no {pattern}")
    total = sum(files.values())
    if total > limits.max_bytes:
        most = size(limits.max_bytes)
        raise AdapterTooLarge(f"{objects.shown} has {size(total)}; at most {most} are taken")
    check_room(place.parent, total, objects.shown)
    for folder in () if alone else {place, *((place / name).parent for name in files)}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        saving = [pool.submit(objects.save, name, n, place / name) for name, n in files.items()]
        try:
            for each in saving:
                each.result()
        except BaseException:
            objects.until = 0.0  # the others end at their next part
            raise
    return place


def exists(url: str, limits: Limits) -> bool:
    """Whether there is a file. Raises SourceRefused, SourceUnreachable."""
    objects = _Objects(url, limits, reuse=True)
    try:
        return bool(objects.call(objects.store.info)["type"] == "file")
    except SourceNotFound:
        return False


def upload(file: Path, url: str, limits: Limits) -> None:
    """Copy a file to `url`, where it appears whole. Raises SourceRefused, SourceUnreachable."""
    objects = _Objects(url, limits, reuse=True)
    objects.call(partial(objects.store.put_file, str(file)), timeout=limits.download_seconds)


class _Objects:
    """One address, and the library that reads it."""

    def __init__(self, url: str, limits: Limits, reuse: bool) -> None:
        scheme, _, path = url.partition("://")
        self.shown = shown_url(url)
        # `::` makes fsspec read through another place.
        if not path.strip("/") or "::" in url or ".." in path.split("/") or "\0" in url:
            raise SourceRefused(f"{self.shown} is not of the form {scheme}://bucket/path")
        self.path = path.rstrip("/")
        self.until = time.monotonic() + limits.download_seconds
        self._limits = limits
        self._library = LIBRARIES[scheme.lower()]
        with self._reported():
            self.store = _opened(scheme.lower(), limits, reuse)

    def matching(self, patterns: Sequence[str]) -> Mapping[str, int]:
        """The sizes of the files of these names, in this folder and in those of the patterns."""
        top = self._files(self.path)
        found = {name: count for name, count in top.items() if count is not None}
        for folder in {str(PurePosixPath(pattern).parent) for pattern in patterns} & top.keys():
            inner = self._files(f"{self.path}/{folder}")
            found |= {f"{folder}/{name}": n for name, n in inner.items() if n is not None}
        return {
            name: count
            for name, count in found.items()
            if any(fnmatch(name, pattern) for pattern in patterns)
        }

    def save(self, name: str, count: int, place: Path) -> None:
        """Write one file of so many bytes."""
        path, at = f"{self.path}/{name}".rstrip("/"), 0
        with place.open("xb") as file:
            while at < count:
                end = min(count, at + _CHUNK)
                data = self.call(self.store.cat_file, path, start=at, end=end)
                if not 0 < len(data) <= end - at:
                    raise SourceUnreachable(f"{self.shown} changed while it was read; try again")
                file.write(data)
                at += len(data)

    def call(self, method: Callable[..., T], path: str | None = None, **more: Any) -> T:
        """One request to the store."""
        from fsspec.asyn import AsyncFileSystem

        if time.monotonic() > self.until:
            seconds = self._limits.download_seconds
            raise SourceUnreachable(f"{self.shown} was not complete after {seconds:.0f} s")
        if isinstance(self.store, AsyncFileSystem):
            more.setdefault("timeout", self._limits.read_seconds)
        else:  # which has limits of its own
            more.pop("timeout", None)
        with self._reported():
            return method(path or self.path, **more)

    def _files(self, folder: str) -> dict[str, int | None]:
        """The names in a folder: a file's size, None for another folder."""
        found: dict[str, int | None] = {}
        for entry in self.call(self.store.ls, folder, detail=True):
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if name not in ("", ".", ".."):
                found[name] = int(entry["size"]) if entry["type"] == "file" else None
        return found

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Raises what a library does as one of ours; each of them has errors of its own."""
        try:
            yield
        except ImportError as error:
            scheme = self.shown.partition("://")[0]
            raise SourceUnreachable(
                f"{scheme}:// needs {self._library}: pip install 'stacked[{scheme}]'"
            ) from error
        except FileNotFoundError as error:
            raise SourceNotFound(f"{self.shown} does not exist, or its bucket does not") from error
        except TimeoutError as error:
            seconds = self._limits.read_seconds
            raise SourceUnreachable(f"{self.shown} did not answer in {seconds:g} s") from error
        except Exception as error:
            said = shown_text(str(error))[:200]
            raise SourceUnreachable(
                f"{self.shown} could not be used ({type(error).__name__}: {said}); check the "
                f"credentials and the address that {self._library} is given"
            ) from error


def _opened(scheme: str, limits: Limits, reuse: bool) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme == "s3":
        seconds = {"connect_timeout": limits.connect_seconds, "read_timeout": limits.read_seconds}
        options["config_kwargs"] = {**seconds, "retries": {"max_attempts": 2}}
    # Otherwise credentials are looked for anew; what is there may always have changed.
    options |= {"skip_instance_cache": not reuse, "use_listings_cache": False}
    return fsspec.filesystem(scheme, **options)
