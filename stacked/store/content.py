"""Whether the files of a stored adapter are still those that were checked when it was added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stacked.core import Adapter, Digest
from stacked.errors import AdapterError, StoreDamaged
from stacked.store.checks import read_config
from stacked.store.digest import digest_of, no_pause
from stacked.store.files import WEIGHTS_FILE
from stacked.store.limits import DEFAULT
from stacked.store.pairs import pair_up
from stacked.store.tensors import read_header


def check_content(adapter: Adapter, pause: Callable[[], None] = no_pause) -> None:
    """Hash the adapter's files in place; tenths of a second for 100 MB. Raises StoreDamaged.

    The same digest means that all earlier checks hold: they were made on the same bytes.
    """
    try:
        found = digest_of(read_config(adapter.path), adapter.path, pause)
    except (AdapterError, OSError) as error:
        raise damaged(adapter.digest, adapter.path, f"cannot be read any more ({error})") from error
    if found != adapter.digest:
        raise damaged(adapter.digest, adapter.path, f"has the content of {found} now")


def damaged(digest: Digest, path: Path, why: str) -> StoreDamaged:
    """The error of an adapter that is not what was stored."""
    return StoreDamaged(
        f"stored adapter {digest} {why}; add it again from its source, or remove {path}"
    )


def modules_of(adapter: Adapter) -> list[str]:
    """The names of a stored adapter's modules, as its tensors spell them. Raises AdapterError."""
    return list(pair_up(read_header(adapter.path / WEIGHTS_FILE, DEFAULT)))
