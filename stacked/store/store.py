"""The adapter store: every adapter once, checked, immutable, under the digest of its content.

Other processes may use the same directory at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from stacked.core import Adapter, Digest
from stacked.errors import (
    AdapterAbsent,
    AdapterError,
    StoreDamaged,
)
from stacked.store.archives import unpack
from stacked.store.base import BaseModules
from stacked.store.checks import (
    Report,
    check_alone,
    check_content,
    check_directory,
    damaged,
    read_config,
    report_of,
)
from stacked.store.digest import digest_of, sent_digest
from stacked.store.disk import seal, workplace
from stacked.store.extras import settle
from stacked.store.files import CONFIG_FILE, WEIGHTS_FILE
from stacked.store.folders import FolderStore
from stacked.store.limits import DEFAULT, Limits
from stacked.store.notes import Notes
from stacked.store.pairs import pair_up
from stacked.store.peft_config import PeftConfig
from stacked.store.plain import make_plain
from stacked.store.shared import SharedContents
from stacked.store.shelf import Stored, pinned, pins
from stacked.store.sources import Download, fetch
from stacked.store.tensors import read_header
from stacked.store.uploads import check_announced

logger = logging.getLogger(__name__)

_Adapters = list[Adapter]  # within the class, `list` is the method


class AdapterStore(FolderStore):
    """A directory of adapters.

    root/adapters/<64 hex digits>/    one adapter: config, weights, its own chat templates
    root/unclaimed/<64 hex digits>    a client knows that it is here, and may register it
    """

    def __init__(
        self,
        root: Path,
        limits: Limits = DEFAULT,
        *,
        download: Download | None = None,
        shared: SharedContents | None = None,
    ) -> None:
        """`download` replaces `huggingface_hub`. Raises StoreUnusable."""
        super().__init__(root, "adapter", limits, shared, "staging")
        self._download = download
        self._known: dict[Digest, Report] = {}
        with self._usable():
            self._unclaimed = Notes(self.root / "unclaimed")
            self._plain = Notes(self.root / "plain")

    def add(
        self,
        source: str,
        *,
        base: BaseModules,
        max_rank: int | None = None,
        allowed_roots: Sequence[Path] | None = None,
        remote: Sequence[str] | None = None,
        foreign_tokens: bool = False,
    ) -> Adapter:
        """Fetch, check and store the adapter at `source`; the same content is stored once.

        `max_rank` is the engine's max_lora_rank. With `allowed_roots`, local paths outside of these
        directories are refused; with `remote`, so are addresses below none of these.
        `foreign_tokens` accepts a tokenizer with tokens that the base's lacks, without these
        tokens. Raises an AdapterError, or StoreUnusable.
        """
        with self._working() as (copy, scratch):
            self._fetch(source, copy, scratch, allowed_roots, remote)
            return self._kept(copy, base, max_rank, foreign_tokens)

    def add_archive(
        self, archive: Path, name: str, *, base: BaseModules, foreign_tokens: bool = False
    ) -> Adapter:
        """`add` for an archive that was sent; `name` is its name in messages."""
        with self._working() as (copy, scratch):
            unpack(archive, copy, scratch, self.limits, name)
            return self._kept(copy, base, None, foreign_tokens)

    def add_upload(
        self, archive: Path, announced: Digest, *, base: BaseModules, foreign_tokens: bool = False
    ) -> None:
        """`add_archive` for an archive that must be the adapter `announced`, to be claimed soon.

        Also raises DigestMismatch; nothing is stored then.
        """
        with self._working() as (copy, scratch):
            unpack(archive, copy, scratch, self.limits, "the upload")
            came = sent_digest(read_config(copy, self.limits), copy)
            check_announced(came, announced, "adapter")
            kept = self._kept(copy, base, None, foreign_tokens, claim=False).digest
            if kept != announced:
                self._plain.put(announced, kept)

    def holds(self, digest: Digest) -> bool:
        """Whether an adapter is present and whole; it then waits to be claimed like an upload."""
        digest = self._kept_as(digest)
        try:
            self.verify(digest)
        except (AdapterAbsent, StoreDamaged):
            return False
        with self._usable():
            return self._is_there(digest, claim=False)

    def claim(self, digest: Digest, *, base: BaseModules, max_rank: int | None = None) -> Adapter:
        """A stored adapter that is needed from now on. Raises what `add` raises, AdapterAbsent."""
        digest = self._kept_as(digest)
        path = self.get(digest).path
        _, report = check_directory(
            path, base, max_rank, self.limits, digest=digest, known_values=True
        )
        with self._usable():
            if not self._is_there(digest, claim=True):
                raise self._absent(digest)
        self._share(digest)
        return report.adapter(path)

    def pinned(self) -> AbstractContextManager[None]:
        """Within the block, added and claimed adapters are not removed; see `shelf.pinned`."""
        return pinned(self.root)

    def pins(self) -> frozenset[Digest]:
        """Digests pinned now, by this process or others, bases included."""
        with self._usable(), self._shelf.changing():
            return pins(self.root)

    def contents(self) -> Iterator[Stored]:
        """Every adapter on the disk."""
        for each in super().contents():
            yield replace(each, awaited=self._unclaimed.get(each.digest) is not None)

    def remove(self, stored: Stored) -> bool:
        """Remove an adapter; False if it was used since it was listed, or is in use.

        Nothing that an engine may still read is removed: callers see to that.
        """
        if not super().remove(stored):
            return False
        self._known.pop(stored.digest, None)
        with self._usable(), self._shelf.changing():
            # Otherwise it was added again meanwhile.
            if not self._shelf.path(stored.digest).exists():
                self._unclaimed.drop(stored.digest)
        return True

    def tidy(self) -> None:
        """Remove what crashed processes left, and notes about removed adapters."""
        with self._usable():
            super().tidy()
            with self._shelf.changing():
                there = {*self._shelf.digests()}
                self._unclaimed.keep(lambda digest, _: digest in there)
                self._plain.keep(lambda _, kept: kept in there)

    def inspect(
        self,
        source: str,
        *,
        base: BaseModules,
        max_rank: int | None = None,
        foreign_tokens: bool = False,
    ) -> Report:
        """The checks of `add` and what they found; nothing is stored. Raises what `add` raises."""
        with self._working() as (copy, scratch):
            self._fetch(source, copy, scratch, None)
            make_plain(copy, base, self.limits)
            lost = settle(copy, base.directory, self.limits, foreign_tokens=foreign_tokens)
            report = check_directory(copy, base, max_rank, self.limits)[1]
            return replace(report, warnings=(*lost, *report.warnings))

    def get(self, digest: Digest) -> Adapter:
        """The stored adapter, without reading its weights. Raises AdapterAbsent, StoreDamaged."""
        path = self._shelf.path(digest)
        report = self._known.get(digest)
        if report is not None and (path / WEIGHTS_FILE).is_file():
            return report.adapter(path)
        return self._read(digest, self.path(digest)).adapter(path)

    def check(self, digest: Digest, base: BaseModules, *, max_rank: int | None = None) -> None:
        """Whether a stored adapter fits another base. Raises what `add` raises, AdapterAbsent."""
        check_directory(self.get(digest).path, base, max_rank, self.limits)

    def list(self) -> _Adapters:
        """Every adapter in the store, by digest. One that cannot be read is logged, not listed."""
        found = []
        for digest in self._shelf.digests():
            try:
                found.append(self.get(digest))
            except AdapterAbsent:
                continue  # removed by another process meanwhile
            except StoreDamaged as error:
                logger.warning("%s", error)
        return found

    def verify(self, digest: Digest) -> None:
        """Hash the stored bytes again. Raises AdapterAbsent, or StoreDamaged if they changed."""
        check_content(self.get(digest))

    def _fetch(
        self,
        source: str,
        copy: Path,
        scratch: Path,
        allowed: Sequence[Path] | None,
        remote: Sequence[str] | None = None,
    ) -> None:
        """A private copy of the source, for the checks."""
        roots = None if allowed is None else [Path(root).resolve() for root in allowed]
        download = self._download
        fetch(source, copy, scratch, self.limits, roots=roots, remote=remote, download=download)

    def _kept(
        self,
        copy: Path,
        base: BaseModules,
        max_rank: int | None,
        foreign_tokens: bool,
        *,
        claim: bool = True,
    ) -> Adapter:
        """Check a copy and add it to the store, unless the store already has the same."""
        make_plain(copy, base, self.limits)  # the digest covers what is stored
        config = read_config(copy, self.limits)
        lost = settle(copy, base.directory, self.limits, foreign_tokens=foreign_tokens)
        digest = digest_of(config, copy)
        report, path = self._standing(digest, base, max_rank), self._shelf.path(digest)
        if report is None or not self._is_there(digest, claim=claim):
            config, report = check_directory(copy, base, max_rank, self.limits, digest=digest)
            path = self._publish(config, digest, copy, claim=claim)
        for warning in (*lost, *report.warnings):
            logger.warning("adapter %s: %s", digest, warning)
        self._share(digest)
        return report.adapter(path)

    def _standing(self, digest: Digest, base: BaseModules, max_rank: int | None) -> Report | None:
        """The adapter stored under a digest, checked again except for its values; None if not
        valid.

        If it is absent, damaged, or does not fit, the checks of the copy explain it better.
        """
        try:
            path = self._shelf.path(digest)
            _, report = check_directory(path, base, max_rank, self.limits, known_values=True)
        except (AdapterError, OSError):
            return None
        return report if report.digest == digest else None

    def _publish(self, config: PeftConfig, digest: Digest, copy: Path, *, claim: bool) -> Path:
        (copy / CONFIG_FILE).write_bytes(config.stored())
        seal(copy)
        path = self._shelf.path(digest)
        with self._shelf.changing():
            try:
                if path.is_dir():
                    self.verify(digest)
            except StoreDamaged:
                logger.warning("stored adapter %s was damaged; it is replaced", digest)
                self._known.pop(digest, None)
                self._shelf.move_away(path, copy.parent)
            self._shelf.place(copy, digest)
            self._use(digest, claim=claim)
        return path

    def _is_there(self, digest: Digest, *, claim: bool) -> bool:
        """Whether an adapter is present; it is needed from now on, or, without `claim`, soon."""
        with self._shelf.changing():
            return self._use(digest, claim=claim)

    def _use(self, digest: Digest, *, claim: bool) -> bool:
        there = self._shelf.use(digest)
        if claim or not there:
            self._unclaimed.drop(digest)
        else:
            self._unclaimed.put(digest)
        return there

    def _read(self, digest: Digest, path: Path) -> Report:
        """A report from the stored files, whose bytes are not hashed."""
        try:
            config = read_config(path, self.limits)
            pairs = pair_up(read_header(path / WEIGHTS_FILE, self.limits))
            report = report_of(config, path, pairs, digest=digest)
        except (AdapterError, OSError) as error:
            raise damaged(digest, path, f"cannot be read any more ({error})") from error
        self._known[digest] = report
        return report

    def _digest(self, made: Path) -> Digest:
        """It fitted its base where it was added; an engine checks it before it is served."""
        check_alone(made, self.limits)
        return digest_of(read_config(made, self.limits), made)

    def _kept_as(self, digest: Digest) -> Digest:
        """The digest that an upload's is stored under: another, or itself."""
        return Digest(self._plain.get(digest) or digest)

    @contextlib.contextmanager
    def _working(self) -> Iterator[tuple[Path, Path]]:
        """Private directories, for a copy and for what archives unpack; removed afterwards."""
        with self._usable(), workplace(self._shelf.staging) as place:
            copy, scratch = place / "adapter", place / "scratch"
            copy.mkdir()
            scratch.mkdir()
            yield copy, scratch
