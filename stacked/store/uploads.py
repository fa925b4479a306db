"""Content as zips: sent from this machine, and what one that was received holds."""

from __future__ import annotations

import contextlib
import enum
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stacked.core import Digest, short
from stacked.errors import ArchiveInvalid, DigestMismatch, StoreUnusable
from stacked.store.archives import unpack_zip, zip_files
from stacked.store.checks import check_alone
from stacked.store.disk import check_room
from stacked.store.files import CONFIG_FILE
from stacked.store.limits import DEFAULT, GIB, Limits
from stacked.store.packing import packed
from stacked.store.sources import fetch

BASE_LIMITS = Limits(max_bytes=512 * GIB, max_members=10_000, max_ratio=20)
"""For a base: larger than any published, in as many shards. Trained weights hardly compress, so an
archive that unpacks to far more is none."""

LISTED_LIMITS = Limits(max_bytes=512 * GIB, max_members=10_000)
"""For listing a zip's content, which decides how much of it may be unpacked."""

# What transformers and vLLM read of a base: data, never code or pickles.
_KEPT = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt", ".md", ".tiktoken"})


class Kind(enum.Enum):
    ADAPTER = "adapter"
    BASE = "base"
    MODEL = "model"  # anything else; `stacked.store.models` says whether it can be served


def kind_of(archive: Path, limits: Limits, name: str) -> Kind:
    """What a zip holds, at its top or in its one top-level folder.

    Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
    """
    names = zip_files(archive, limits, name)
    here = [path for path in names if len(path.parts) <= 2]
    if any(path.name == CONFIG_FILE for path in here):
        return Kind.ADAPTER
    if _base_folder(here) is not None:
        return Kind.BASE
    return Kind.MODEL


def unpack_base(archive: Path, target: Path, limits: Limits, name: str) -> None:
    """Unpack only a base's config, tokenizer, texts and safetensors into `target`.

    Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
    """
    names = zip_files(archive, limits, name)
    folder = _base_folder(names)
    if folder is None:
        raise ArchiveInvalid(f"{name} has *.safetensors but no config.json")
    wanted = {path for path in names if path.parent == folder and _is_kept(path)}
    check_room(target, sum(names[path] for path in wanted), f"{name}, unpacked")
    unpack_zip(archive, target, limits, name, wanted, folder)


def unpack_folder(archive: Path, target: Path, limits: Limits, name: str) -> None:
    """Unpack all of a zip into `target`.

    Raises ArchiveInvalid, PathUnsafe, AdapterTooLarge.
    """
    listed = zip_files(archive, limits, name)
    # macOS adds a folder of its own, with what only it reads.
    names = {path: listed[path] for path in listed if path.parts and path.parts[0] != "__MACOSX"}
    if any(parent in names for path in names for parent in path.parents):
        raise ArchiveInvalid(f"{name} has a file where it also has a folder; pack it again")
    check_room(target, sum(names.values()), f"{name}, unpacked")
    unpack_zip(archive, target, limits, name, names, PurePosixPath())


def _base_folder(names: Collection[PurePosixPath]) -> PurePosixPath | None:
    """The folder with a config and weights: the top, otherwise the only one."""
    found = [
        path.parent
        for path in names
        if path.name == "config.json"
        and len(path.parts) <= 2
        and any(other.parent == path.parent and other.suffix == ".safetensors" for other in names)
    ]
    top = PurePosixPath()
    if top in found:
        return top
    return found[0] if len(found) == 1 else None


def _is_kept(path: PurePosixPath) -> bool:
    licence = path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
    return path.suffix in _KEPT or (licence and path.suffix in ("", ".txt", ".md"))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A private copy of an adapter's files, and their digest."""

    digest: Digest
    directory: Path

    def parts(self) -> Iterator[bytes]:
        """The zip for `AdapterStore.add_upload`, about 1 MB at a time."""
        return packed(self.directory)

    def size(self) -> int:
        """The total bytes of the parts."""
        return sum(map(len, self.parts()))


def outgoing(source: str, limits: Limits = DEFAULT) -> contextlib.AbstractContextManager[Outgoing]:
    """Copy the adapter at `source` to a temporary directory, and check it without a base.

    Raises what `AdapterStore.add` raises before it looks at a base; StoreUnusable where there is no
    room for the copy.
    """

    def read(copy: Path, scratch: Path) -> Digest:
        fetch(source, copy, scratch, limits)
        return check_alone(copy, limits)

    return copied(source, read)


@contextlib.contextmanager
def copied(source: str, read: Callable[[Path, Path], Digest]) -> Iterator[Outgoing]:
    """What `read` copies from `source` into the first of two empty directories."""
    with contextlib.ExitStack() as stack:
        try:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stacked-")))
            copy, scratch = place / "copy", place / "scratch"
            copy.mkdir()
            scratch.mkdir()
            digest = read(copy, scratch)
        except OSError as error:
            raise StoreUnusable(
                f"{source} cannot be copied to a temporary directory ({error}); "
                "free some space there, or set TMPDIR to another one"
            ) from error
        yield Outgoing(digest, copy)


def check_announced(came: Digest, announced: Digest, kind: str) -> None:
    """Raises DigestMismatch for another content than the one that was to be sent."""
    if came != announced:
        raise DigestMismatch(
            f"{kind} {short(announced)} was announced, but {short(came)} was sent; send it again, "
            "and with the server's version of Stacked"
        )
