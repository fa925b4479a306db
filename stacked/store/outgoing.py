"""An adapter to be sent from this machine to a store elsewhere, and its digest there.

It is read, checked and packed as the store would, but without a base to check against.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stacked.core import Digest
from stacked.errors import StoreUnusable
from stacked.store.artifacts import packed
from stacked.store.checks import check_alone
from stacked.store.limits import DEFAULT, Limits
from stacked.store.sources import fetch


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


@contextlib.contextmanager
def outgoing(source: str, limits: Limits = DEFAULT) -> Iterator[Outgoing]:
    """Copy the adapter at `source` to a temporary directory, and check it.

    Raises what `AdapterStore.add` raises before it looks at a base; StoreUnusable where there is no
    room for the copy.
    """
    with contextlib.ExitStack() as stack:
        try:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stacked-")))
            copy, scratch = place / "adapter", place / "scratch"
            copy.mkdir()
            scratch.mkdir()
            fetch(source, copy, scratch, limits)
            digest = check_alone(copy, limits)
        except OSError as error:
            raise StoreUnusable(
                f"{source} cannot be copied to a temporary directory ({error}); "
                "free some space there, or set TMPDIR to another one"
            ) from error
        yield Outgoing(digest, copy)
