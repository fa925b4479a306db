"""Private copies of the two files that make an adapter, taken from a directory nobody trusts.

It must not know how the directory came to be here or what the files say.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Protocol

from stacked.errors import (
    AdapterTooLarge,
    FileMissing,
    PathUnsafe,
    PickleRefused,
    SourceNotFound,
    SourceRefused,
)
from stacked.store.limits import Limits
from stacked.store.text import quoted, size

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WANTED = (CONFIG_FILE, WEIGHTS_FILE)
"""What makes an adapter, under the names that PEFT writes and vLLM reads. Nothing else is kept."""

_CHUNK = 1 << 20
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PICKLE_STEMS = ("adapter_model", "pytorch_model", "adapter", "model")


class Readable(Protocol):
    """Anything that gives bytes, `count` at most, and none at its end."""

    def read(self, count: int = ..., /) -> bytes: ...


def copy_adapter(
    source: Path, target: Path, limits: Limits, roots: Sequence[Path] | None = None
) -> None:
    """Copy what makes an adapter from the directory `source` into `target`, and nothing else.

    A link inside `source` may lead anywhere inside it; in a Hub cache, anywhere in the folder of
    its repository. `roots`: resolved directories outside of which nothing is read at all. Raises
    FileMissing, PickleRefused, PathUnsafe, AdapterTooLarge, SourceNotFound, SourceRefused.
    """
    try:
        real = source.resolve(strict=True)
        names = set(os.listdir(real))
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceNotFound(f"{source} cannot be read: {reason}") from error
    require_wanted(names, str(source), _elsewhere(real))
    bounds = (_extent(real), *(roots or ()))
    for name in WANTED:
        limit = limits.max_config_bytes if name == CONFIG_FILE else limits.max_bytes
        with _open(real / name, real, bounds) as reader:
            write_copy(reader, target / name, limit, name)


def require_wanted(names: Collection[str], where: str, hint: str = "") -> None:
    """Raise FileMissing or PickleRefused where a listing lacks one of the two files.

    A pickle beside safetensors weights is nothing to complain about: it is not copied.
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
    """What the files are instead, where another tool's names tell."""
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


def write_copy(reader: Readable, target: Path, limit: int, name: str) -> int:
    """Copy a stream to a new file, at most `limit` bytes of it; the number of bytes copied."""
    written = 0
    with target.open("xb") as file:
        while chunk := reader.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise AdapterTooLarge(
                    f"{quoted(name)} has more than {size(limit)}; no adapter needs that much here"
                )
            file.write(chunk)
    return written


def _open(path: Path, directory: Path, bounds: Sequence[Path]) -> IO[bytes]:
    """Open a regular file, having followed only links that stay within the bounds."""
    real = Path(os.path.realpath(path))
    extent, *roots = bounds
    if not real.is_relative_to(extent):
        raise PathUnsafe(
            f"{path.name} in {directory} is a link that leads out of it, to {real}; "
            "put the file itself there"
        )
    if roots and not any(real.is_relative_to(root) for root in roots):
        raise SourceRefused(f"{real} is outside the directories that adapters may be loaded from")
    # NONBLOCK: a named pipe must not hang us. NOFOLLOW: nobody swaps in a link after the look.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(real, flags)
    except OSError as error:
        raise SourceRefused(f"{path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PathUnsafe(f"{path.name} in {directory} is not a regular file")
    return os.fdopen(descriptor, "rb")


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
    """A hint for somebody who pointed at the folder above: checkpoints of a trainer, mostly."""
    found = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_FILE}"))
    return f"There is one in {', '.join(found[:5])}: point at that" if found else ""
