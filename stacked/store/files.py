"""Private copies of an adapter's files, taken from an untrusted directory."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from stacked.chat.templates import CHAT_FILE, MORE_TEMPLATES, SPECIAL_FILE, TEMPLATE_FILE
from stacked.errors import (
    AdapterTooLarge,
    FileMissing,
    PathUnsafe,
    PickleRefused,
    SourceNotFound,
    SourceRefused,
)
from stacked.store.disk import check_room
from stacked.store.limits import Limits
from stacked.store.text import quoted, size

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
ADDED_FILE = "added_tokens.json"
WANTED = (CONFIG_FILE, WEIGHTS_FILE)
"""An adapter's files, under the names that PEFT writes and vLLM reads."""

EXTRA = (CHAT_FILE, TEMPLATE_FILE, SPECIAL_FILE, ADDED_FILE, TOKENIZER_FILE)
"""Optional files, as transformers writes them, about how prompts are made."""
PATTERNS = (*WANTED, *EXTRA, f"{MORE_TEMPLATES}/*.jinja")
"""All that is read of a source."""

_CHUNK = 1 << 20
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PICKLE_STEMS = ("adapter_model", "pytorch_model", "adapter", "model")


class Readable(Protocol):
    """Anything that returns bytes, `count` at most, and none at its end."""

    def read(self, count: int = ..., /) -> bytes: ...


def copy_adapter(
    source: Path, target: Path, limits: Limits, roots: Sequence[Path] | None = None
) -> None:
    """Copy only an adapter's files from the directory `source` into `target`.

    A link inside `source` may lead anywhere inside it; in a Hub cache, anywhere in the folder of
    its repository. `roots`: resolved directories outside of which nothing is read. Raises
    FileMissing, PickleRefused, PathUnsafe, AdapterTooLarge, SourceNotFound, SourceRefused.
    """
    real = real_path(source)
    names = set(_names(real))
    require_wanted(names, str(source), _elsewhere(real))
    bounds = (_extent(real), *(roots or ()))
    more = [f"{MORE_TEMPLATES}/{name}" for name in _more_templates(real, bounds)]
    if len(more) >= limits.max_templates:
        raise AdapterTooLarge(f"{source} has more than {limits.max_templates} chat templates")
    for name in [*WANTED, *(name for name in EXTRA if name in names), *more]:
        with _open(real / name, real, bounds) as reader:
            (target / name).parent.mkdir(exist_ok=True)
            expected = os.fstat(reader.fileno()).st_size
            write_copy(reader, target / name, most_bytes(name, limits), name, expected)


def copy_tree(
    source: Path, target: Path, limits: Limits, roots: Sequence[Path] | None, alone: str
) -> None:
    """Copy all files of a directory into `target`, or one file as `alone`.

    Links and `roots` as in `copy_adapter`. Raises PathUnsafe, AdapterTooLarge, SourceRefused.
    """
    real = real_path(source)
    place, names = (real, _all_names(real)) if real.is_dir() else (real.parent, [real.name])
    bounds, left = (_extent(place), *(roots or ())), limits.max_bytes
    for count, name in enumerate(names):
        if count >= limits.max_members:
            raise AdapterTooLarge(f"{source} has more than {limits.max_members} files")
        copy = target / (name if real.is_dir() else alone)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _open(place / name, place, bounds) as reader:
            write_copy(reader, copy, left, name, os.fstat(reader.fileno()).st_size)
        left -= copy.stat().st_size


def _all_names(directory: Path) -> Iterator[str]:
    """Every file below a directory, and links to directories, which are no files."""

    def refuse(error: OSError) -> None:
        raise SourceRefused(f"{error.filename} cannot be read: {error.strerror}") from error

    for place, folders, files in os.walk(directory, onerror=refuse):
        links = [each for each in folders if os.path.islink(os.path.join(place, each))]
        for name in files + links:
            yield os.path.relpath(os.path.join(place, name), directory)


def real_path(path: Path) -> Path:
    """The path without links. Raises SourceRefused where there can be none.

    `os.path.realpath` fails where a link becomes a directory between its two looks at it, and for
    a null character; `Path.resolve` also for links that lead in a circle.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceRefused(f"{quoted(str(path))} cannot be read: {reason}") from error


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        raise SourceNotFound(f"{directory} cannot be read: {error.strerror}") from error


def is_read(name: str) -> bool:
    """Whether a file of that name, relative to an adapter's folder, is one that is copied."""
    folder, _, file = name.rpartition("/")
    return name in (*WANTED, *EXTRA) or (folder == MORE_TEMPLATES and file.endswith(".jinja"))


def most_bytes(name: str, limits: Limits) -> int:
    """The largest size of a file of that name."""
    most = {
        CONFIG_FILE: limits.max_config_bytes,
        WEIGHTS_FILE: limits.max_bytes,
        TOKENIZER_FILE: limits.max_tokenizer_bytes,
    }
    return most.get(name, limits.max_extra_bytes)


def require_wanted(names: Collection[str], where: str, hint: str = "") -> None:
    """Raise FileMissing or PickleRefused if a listing lacks one of the two files.

    A pickle next to safetensors weights is not an error: it is not copied.
    """
    if WEIGHTS_FILE not in names:
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix in _PICKLES and stem.startswith(_PICKLE_STEMS):
                raise PickleRefused(
                    f"{where} has its weights as {name}, a pickle, which can run code when it is "
                    f"read; save the adapter as {WEIGHTS_FILE} (safe_serialization=True)"
                )
    missing = [name for name in WANTED if name not in names]
    if not missing:
        return
    if CONFIG_FILE in missing and "config.json" in names:
        hint = "It looks like a full model, not a LoRA adapter"
    hint = hint or _other_layout(names)
    raise FileMissing(
        f"{where} has no {' and no '.join(missing)}. {hint or 'Is it an adapter saved by PEFT?'}"
    )


def _other_layout(names: Collection[str]) -> str:
    """What the files are instead, if they have another tool's names."""
    for name in sorted(names):
        if re.fullmatch(
            r"adapter_model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)", name
        ):
            return f"{name} is of an adapter in several files: save it as one (max_shard_size)"
        if name == "adapters.safetensors":
            return f"{name} is MLX's: convert it to PEFT's layout, which has other names and shapes"
        if name == "zero_to_fp32.py" or name.startswith("global_step"):
            return f"{name} is of a DeepSpeed checkpoint: gather the weights, then save_pretrained"
        if name.endswith(".distcp") or name.startswith("pytorch_model_fsdp"):
            return f"{name} is of a sharded FSDP checkpoint: merge it, then save_pretrained"
    return ""


def write_copy(reader: Readable, target: Path, limit: int, name: str, expected: int = 0) -> None:
    """Copy a stream to a new file; `expected` is the announced number of bytes.

    Raises AdapterTooLarge for more than `limit` bytes, StoreUnusable where they have no room.
    """
    written = expected
    if written <= limit:
        check_room(target.parent, expected, quoted(name))
        written = 0
        with target.open("xb") as file:
            while written <= limit and (chunk := reader.read(_CHUNK)):
                written += file.write(chunk)
    if written > limit:
        raise AdapterTooLarge(
            f"{quoted(name)} has more than {size(limit)}; no adapter needs that much here"
        )


def _more_templates(directory: Path, bounds: Sequence[Path]) -> list[str]:
    """The names of the templates in their folder, which may itself be a link."""
    folder = real_path(directory / MORE_TEMPLATES)
    if not folder.is_dir():
        return []
    if not folder.is_relative_to(bounds[0]):
        raise _leads_out(MORE_TEMPLATES, directory, folder)
    return sorted(name for name in _names(folder) if name.endswith(".jinja"))


def _leads_out(name: str, directory: Path, real: Path) -> PathUnsafe:
    return PathUnsafe(
        f"{name} in {directory} is a link that leads out of it, to {real}; "
        "put the file itself there"
    )


def _open(path: Path, directory: Path, bounds: Sequence[Path]) -> IO[bytes]:
    """Open a regular file, having followed only links that stay within the bounds."""
    real = real_path(path)
    extent, *roots = bounds
    if not real.is_relative_to(extent):
        raise _leads_out(path.name, directory, real)
    if roots and not any(real.is_relative_to(root) for root in roots):
        raise SourceRefused(f"{real} is outside the directories that adapters may be loaded from")
    try:
        descriptor = _opened(real)
    except OSError as error:
        raise SourceRefused(f"{path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PathUnsafe(f"{path.name} in {directory} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _opened(real: Path) -> int:
    """Open a resolved path part by part: none may be a link that was swapped in after the check."""
    folder = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
    # NONBLOCK: a named pipe must not block.
    file = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_RDONLY | os.O_NONBLOCK
    place = os.open(real.anchor, folder)
    for part in real.parts[1:-1]:
        place = _below(place, part, folder)
    return _below(place, real.name, file)


def _below(place: int, part: str, flags: int) -> int:
    """Open a part of a path within a directory, which is closed."""
    try:
        return os.open(part, flags, dir_fd=place)
    finally:
        os.close(place)


def _extent(directory: Path) -> Path:
    """How far links may lead: the directory, or the repository's folder in a Hub cache.

    A cache keeps files as `<repository>/snapshots/<commit>/<file>`, links to
    `<repository>/blobs/<hash>`.
    """
    for parent in directory.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return directory


def _elsewhere(directory: Path) -> str:
    """A hint if the folder above was given, mostly one with a trainer's checkpoints."""
    try:
        found = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_FILE}"))
    except OSError:  # a hint is not worth a refusal
        return ""
    return f"There is one in {', '.join(found[:5])}: point at that" if found else ""
