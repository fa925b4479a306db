"""The content of a model: read from a source or a zip, checked, and added to the stores.

It must not know records' tables or what becomes of a model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from zipfile import is_zipfile

from stacked.bases import base_digest, is_base
from stacked.catalogue.bases import CatalogueBases
from stacked.core import Adapter, Digest, ModelFiles, is_digest
from stacked.errors import AdapterAbsent
from stacked.registry import Content, Model
from stacked.store import AdapterStore, BaseModules, Kind, ModelStore, is_model, is_remote, kind_of
from stacked.store.files import CONFIG_FILE, real_path
from stacked.store.models import SINGLE
from stacked.store.uploads import LISTED_LIMITS

_UPLOAD = "the artifact"


class Contents:
    """Reads content from under `roots` and, on other machines, `remote`; and from zips."""

    def __init__(
        self,
        store: AdapterStore,
        bases: CatalogueBases,
        models: ModelStore,
        roots: Sequence[Path],
        *,
        remote: Sequence[str],
        foreign_tokens: bool,
    ) -> None:
        self._store = store
        self._bases = bases
        self._models = models
        self._roots = roots
        self._remote = remote
        self._foreign = foreign_tokens

    def of_source(self, model: Model, source: str) -> tuple[Content, str]:
        """The content at `source`, and how the source is to be recorded.

        An adapter or a model is copied; a directory with a base stays where it is. A digest is an
        adapter that the store has. Raises AdapterError, NotAllowed.
        """
        if is_digest(source):
            return self._of_digest(model, Digest(source)), ""
        place = self._place(source)
        adapter_is_there = place is None or (place / CONFIG_FILE).exists()
        if place is not None and not adapter_is_there and is_base(place):
            weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
            return Content(kind="base", digest=base_digest(place), bytes=weights), str(place)
        if place is not None and not adapter_is_there and is_model(place):
            roots = [root.resolve() for root in self._roots]
            return _of_model(self._models.add(place, source, roots)), source
        if place is not None and is_zipfile(place):
            content = self.of_archive(model, place, source)
            return content, "" if content.kind == "base" else source
        base, modules = self._base(model)
        adapter = self._store.add(
            source,
            base=modules,
            allowed_roots=self._roots,
            remote=self._remote,
            foreign_tokens=self._foreign,
        )
        return _content(adapter, base), source

    def of_archive(self, model: Model, archive: Path, name: str) -> Content:
        """The content of a zip that was sent, whose files show what it is; or of one file.

        `name`: the client's name of it. Raises AdapterError, NotAllowed.
        """
        alone = PurePath(name).suffix.lower() in SINGLE
        kind = Kind.MODEL if alone else kind_of(archive, LISTED_LIMITS, _UPLOAD)
        if kind is Kind.MODEL:
            return _of_model(self._models.add(archive, name if alone else _UPLOAD))
        if kind is Kind.BASE:
            digest, size = self._bases.store.add(archive, _UPLOAD)
            return Content(kind="base", digest=digest, bytes=size)
        base, modules = self._base(model)
        adapter = self._store.add_archive(
            archive, _UPLOAD, base=modules, foreign_tokens=self._foreign
        )
        return _content(adapter, base)

    def keep_upload(self, archive: Path, digest: Digest) -> None:
        """Store what an archive has that was sent under its digest. Raises AdapterError.

        An adapter must fit the base that is served; what makes it a model is `of_source` with the
        digest.
        """
        if kind_of(archive, LISTED_LIMITS, "the upload") is Kind.MODEL:
            self._models.add(archive, "the upload", announced=digest)
            return
        _, modules = self._base(Model(id=""))
        self._store.add_upload(archive, digest, base=modules, foreign_tokens=self._foreign)

    def _of_digest(self, model: Model, digest: Digest) -> Content:
        if found := self._models.find(digest):
            return _of_model(found)
        base, modules = self._base(model)
        try:
            return _content(self._store.claim(digest, base=modules), base)
        except AdapterAbsent as error:
            raise AdapterAbsent(f"adapter {digest} is not here; send it first") from error

    def _base(self, model: Model) -> tuple[Model, BaseModules]:
        base = self._bases.base_for(model)
        return base, self._bases.modules(base)

    def _place(self, source: str) -> Path | None:
        """Where a source is, if it is on this machine and may be read."""
        if is_remote(source):
            return None
        place = real_path(Path(os.path.expanduser(source.removeprefix("file://"))))
        # Otherwise the store of adapters refuses it, with its own message.
        allowed = any(place.is_relative_to(root.resolve()) for root in self._roots)
        return place if allowed else None


def _of_model(files: ModelFiles) -> Content:
    return Content(kind="model", digest=files.digest, bytes=files.bytes)


def _content(adapter: Adapter, base: Model) -> Content:
    return Content(
        kind="adapter",
        digest=adapter.digest,
        bytes=adapter.bytes,
        rank=adapter.rank,
        base_model_id=base.id,
    )
