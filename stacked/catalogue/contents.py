"""The content of a model: read from a source or a zip, checked, and added to the stores.

It must not know records' tables or what becomes of a model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stacked.bases import base_digest, is_base
from stacked.catalogue.bases import CatalogueBases
from stacked.core import Adapter, Digest, is_digest
from stacked.errors import AdapterAbsent
from stacked.registry import Content, Model
from stacked.store import AdapterStore, Kind, is_remote, kind_of
from stacked.store.files import CONFIG_FILE, real_path
from stacked.store.uploads import LISTED_LIMITS

_UPLOAD = "the artifact"


class Contents:
    """Reads content from under `roots` and, where `remote`, from other machines; and from zips."""

    def __init__(
        self,
        store: AdapterStore,
        bases: CatalogueBases,
        roots: Sequence[Path],
        *,
        remote: bool,
        foreign_tokens: bool,
    ) -> None:
        self._store = store
        self._bases = bases
        self._roots = roots
        self._remote = remote
        self._foreign = foreign_tokens

    def of_source(self, model: Model, source: str) -> tuple[Content, str]:
        """The content at `source`, and how the source is to be recorded.

        An adapter is copied; a directory with a base stays where it is. A digest is an adapter
        that the store has. Raises AdapterError.
        """
        if is_digest(source):
            return self._of_digest(model, Digest(source)), ""
        directory = self._base_directory(source)
        if directory is not None:
            weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
            digest = base_digest(directory)
            return Content(kind="base", digest=digest, bytes=weights), str(directory)
        base = self._bases.base_for(model)
        modules = self._bases.modules(base)
        adapter = self._store.add(
            source,
            base=modules,
            allowed_roots=self._roots,
            remote=self._remote,
            foreign_tokens=self._foreign,
        )
        return _content(adapter, base), source

    def of_archive(self, model: Model, archive: Path) -> Content:
        """The content of a zip that was sent; its files show what it is.

        Raises AdapterError.
        """
        if kind_of(archive, LISTED_LIMITS, _UPLOAD) is Kind.BASE:
            digest, weights = self._bases.store.add(archive, _UPLOAD)
            return Content(kind="base", digest=digest, bytes=weights)
        base = self._bases.base_for(model)
        modules = self._bases.modules(base)
        adapter = self._store.add_archive(
            archive, _UPLOAD, base=modules, foreign_tokens=self._foreign
        )
        return _content(adapter, base)

    def keep_upload(self, archive: Path, digest: Digest) -> None:
        """Store the adapter of an archive that was sent under its digest. Raises AdapterError.

        It must fit the base that is served; what makes it a model is `of_source` with the digest.
        """
        modules = self._bases.modules(self._bases.base_for(Model(id="")))
        self._store.add_upload(archive, digest, base=modules, foreign_tokens=self._foreign)

    def _of_digest(self, model: Model, digest: Digest) -> Content:
        base = self._bases.base_for(model)
        modules = self._bases.modules(base)
        try:
            return _content(self._store.claim(digest, base=modules), base)
        except AdapterAbsent as error:
            raise AdapterAbsent(f"adapter {digest} is not here; send it first") from error

    def _base_directory(self, source: str) -> Path | None:
        """The directory of a base, if the source is one that may be read."""
        if is_remote(source):
            return None
        directory = real_path(Path(os.path.expanduser(source.removeprefix("file://"))))
        if not any(directory.is_relative_to(root.resolve()) for root in self._roots):
            return None  # the store refuses it, with its own message
        whole = is_base(directory) and not (directory / CONFIG_FILE).exists()
        return directory if whole else None


def _content(adapter: Adapter, base: Model) -> Content:
    return Content(
        kind="adapter",
        digest=adapter.digest,
        bytes=adapter.bytes,
        rank=adapter.rank,
        base_model_id=base.id,
    )
