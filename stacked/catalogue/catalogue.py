"""The catalogue: models with their content, groups of them, and the files they came as.

Between the registry's records and the stores on disk. It must not know the engine, HTTP or what is
served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

from stacked.catalogue.bases import CatalogueBases
from stacked.catalogue.contents import Contents
from stacked.core import VERSIONED, Digest, check_digest, model_id_of
from stacked.errors import (
    ParameterInvalid,
    RecordConflict,
)
from stacked.registry import (
    MODEL,
    Artifact,
    Content,
    GroupRecord,
    GroupState,
    Model,
    ModelState,
    Registry,
    new_id,
)
from stacked.registry.composition import HOMOGENEOUS
from stacked.registry.retention import is_versioned
from stacked.store import (
    AdapterStore,
    ArtifactFiles,
    BaseStore,
    Incoming,
    ModelStore,
    pack,
)

R = TypeVar("R")

# Fields of a model with calls of their own, which stay when its description is updated.
_SAID_APART = ("provenance",)


class Catalogue:
    """What can be served, recorded in one registry. Every method blocks; any thread may call it.

    `roots` are the directories that sources may stand in; `remote`: whether they may stand on other
    machines too; `foreign_tokens`: whether tokens that a base lacks are accepted. Files of
    artifacts stand in `directory`, which nobody else uses.
    """

    def __init__(
        self,
        registry: Registry,
        store: AdapterStore,
        directory: Path,
        *,
        roots: Sequence[str] = (),
        remote: Sequence[str] = (),
        engine: Mapping[str, Any] | None = None,
        foreign_tokens: bool = False,
        models: ModelStore | None = None,
    ) -> None:
        """Clears what a killed process left half received.

        Raises StoreUnusable.
        """
        self.registry = registry
        self.store = store
        self.bases = CatalogueBases(
            registry, BaseStore(store.root, shared=store.shared), engine or {}
        )
        self.files = ArtifactFiles(directory, registry.artifacts.files(), store.shared)
        self.models = models or ModelStore(store.root, shared=store.shared)
        self._contents = Contents(
            store,
            self.bases,
            self.models,
            [Path(root) for root in roots],
            remote=remote,
            foreign_tokens=foreign_tokens,
        )
        # Between naming a file and recording it, no other thread may remove it.
        self._naming = threading.Lock()
        self.changed: Callable[[], object] = lambda: None
        """Called when content may have become unneeded, from any thread."""

    # -- models -----------------------------------------------------------------------------

    def register(self, model: Model, source: str, model_id: str | None = None) -> Model:
        """Record a model whose content is read from `source`, or update its description.

        A digest for a source: an adapter that the store has, such as by `upload`.
        The id of an adapter follows from its content unless it is given. A base is a directory of
        this machine, and is kept by reference. Raises AdapterError, and RecordConflict where the id
        has other content.
        """
        with self.store.pinned():
            return self._register(model, source, model_id)

    def _register(self, model: Model, source: str, model_id: str | None) -> Model:
        content, source = self._contents.of_source(model, source)
        id = model_id or self._id_of(content)
        there = self.registry.models.get_many([id]).get(id)
        if there is not None:
            _check_same_place(there, content, source)
            said = {name: there.extra[name] for name in _SAID_APART if name in there.extra}
            model = replace(model, extra={**said, **model.extra})
            source = source or there.source
            if there.state is not ModelState.DELETED and not is_versioned(there.tags):
                model = replace(model, tags=_lasting(model.tags))
        return self.registry.models.put(
            replace(
                model,
                id=id,
                source=source,
                kind=content.kind,
                digest=content.digest,
                bytes=content.bytes,
                rank=content.rank,
                base_model_id=content.base_model_id,
            )
        )

    def _id_of(self, content: Content) -> str:
        """The same adapter has the same id; a base's identity is no hash of its weights."""
        if content.kind == "base":
            return new_id(MODEL)
        return model_id_of(check_digest(content.digest))

    def delete(self, id: str, expect: Model | None = None) -> Model:
        """Leave the record alone; the model's files go. Raises RecordConflict while it is served.

        Its content is left to `stacked.retention`: others may need it.
        """
        with self._replacing(id):
            deleted = self.registry.models.set_state(id, ModelState.DELETED, expect=expect)
        self.changed()
        return deleted

    # -- artifacts --------------------------------------------------------------------------

    def holds(self, digest: Digest) -> bool:
        """Whether an adapter or another model is present and whole, so that it need not be sent."""
        return self.store.holds(digest) or self.models.find(digest) is not None

    def upload(self, digest: Digest, incoming: Incoming) -> None:
        """Store a received adapter or other model, to be registered by its digest before it counts
        as unused.

        Raises AdapterError, DigestMismatch if it is another one.
        """
        self._contents.keep_upload(incoming.path, digest)

    def fill(
        self, id: str, incoming: Incoming, name: str = "", expect: Model | None = None
    ) -> Model:
        """Make a received file the content of a model: an adapter, a base, or another model.

        The whole of it is there when this returns, or nothing of it. Raises AdapterError, and
        RecordConflict for other content than the model has, where it is in a group.
        """
        model = self.registry.models.get(id)
        artifact = _artifact(id, "", incoming, name)
        with self.store.pinned():
            content = self._contents.of_archive(model, incoming.path, name)
            return self._named(
                incoming, id, lambda: self.registry.models.fill(id, content, artifact, expect)
            )

    def attach(
        self,
        id: str,
        part: str,
        incoming: Incoming,
        name: str = "",
        expect: Model | None = None,
        *,
        new: bool,
    ) -> Model:
        """Store a received file with one metadatum of a model. See `ModelRepository.attach`."""
        artifact = _artifact(id, part, incoming, name)
        return self._named(
            incoming, id, lambda: self.registry.models.attach(artifact, expect, new=new)
        )

    def attach_to_group(
        self, id: str, incoming: Incoming, name: str = "", expect: GroupRecord | None = None
    ) -> GroupRecord:
        """Store a received zip as the code of a HOMOGENEOUS group.

        Raises NotAllowed, AdapterError, RecordConflict for a group of another kind.
        """
        artifact = _artifact(id, "", incoming, name)
        if self.registry.groups.get(id).kind == HOMOGENEOUS:
            self.models.add_code(incoming.path, "the artifact")
        return self._named(incoming, id, lambda: self.registry.groups.attach(artifact, expect))

    def detach(self, id: str, part: str, expect: Model | None = None) -> Model:
        """Remove the file of one metadatum of a model."""
        with self._replacing(id):
            return self.registry.models.detach(id, part, expect)

    def open(self, owner_id: str, part: str = "") -> tuple[Artifact, IO[bytes]]:
        """A file with its record; its bytes stay readable even if it is replaced.

        What was not uploaded is packed now, but for a base. Raises RecordAbsent, StoreDamaged.
        """
        if not part:
            self._pack(owner_id)
        with self._naming:
            artifact = self.registry.artifacts.get(owner_id, part)
            return artifact, self.files.open(artifact.sha256)

    # -- groups -----------------------------------------------------------------------------

    def delete_group(self, id: str, expect: GroupRecord | None = None) -> GroupRecord:
        """Leave the record alone; the group's file goes. Raises RecordConflict while it serves."""
        with self._replacing(id):
            self.registry.groups.set_state(id, GroupState.DELETING, expect=expect)
            deleted = self.registry.groups.set_state(id, GroupState.DELETED)
        self.changed()
        return deleted

    def loadable(self, id: str, kind: str) -> Digest | None:
        """The content of a model of this kind that can be loaded alone; None for an unknown id.

        Raises ParameterInvalid for another kind of model, RecordConflict.
        """
        model = self.registry.models.get_many([id]).get(id)
        if model is None:
            return None
        if model.state is not ModelState.ACTIVE or not model.kind:
            lacks = "has no artifact" if model.kind == "" else f"is {model.state.value}"
            raise RecordConflict(f"model {id} {lacks}; an ACTIVE one with content can be loaded")
        if model.kind != kind:
            raise ParameterInvalid(f"model {id} is of kind {model.kind}; only {kind}s load here")
        return check_digest(model.digest)

    # -- files ------------------------------------------------------------------------------

    def tidy_files(self) -> int:
        """Remove files that no record names; how many."""
        with self._naming:
            return self.files.drop_others(self.registry.artifacts.files())

    def _pack(self, id: str) -> None:
        """Make the zip of an adapter or a model that came from a source, unless it exists."""
        model = self.registry.models.get_many([id]).get(id)
        if model is None or model.kind in ("", "base") or model.state is ModelState.DELETED:
            return
        if any(not artifact.part for artifact in self.registry.artifacts.of(id)):
            return
        digest, of_model = check_digest(model.digest), model.kind == "model"
        place = self.models.path(digest) if of_model else self.store.get(digest).path
        with self.files.receive(model.bytes) as incoming:
            pack(place, incoming)
            incoming.finish()
            artifact = _artifact(id, "", incoming, "artifact.zip")
            self._named(incoming, id, lambda: self.registry.artifacts.put(artifact))

    def _named(self, incoming: Incoming, owner_id: str, record: Callable[[], R]) -> R:
        """Name a file and record it; the replaced one is removed, or the file itself if refused."""
        self.files.share(incoming)
        with self._replacing(owner_id, incoming.sha256):
            self.files.keep(incoming)
            return record()

    @contextmanager
    def _replacing(self, owner_id: str, *new: str) -> Iterator[None]:
        """Remove what no record needs afterwards: of the owner's files, and of `new` ones."""
        with self._naming:
            before = [artifact.sha256 for artifact in self.registry.artifacts.of(owner_id)]
            try:
                yield
            finally:
                for sha256 in {*before, *new}:
                    if not self.registry.artifacts.needs(sha256):
                        self.files.drop(sha256)


def _artifact(owner_id: str, part: str, incoming: Incoming, name: str) -> Artifact:
    return Artifact(
        owner_id=owner_id,
        part=part,
        sha256=incoming.sha256,
        md5=incoming.md5,
        bytes=incoming.bytes,
        name=name,
    )


def _lasting(tags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the tag of versions: a model that was to stay still does."""
    freeform = tags.get("freeform") or {}
    return {**tags, "freeform": {key: freeform[key] for key in freeform.keys() - VERSIONED}}


def _check_same_place(there: Model, content: Content, source: str) -> None:
    """What tells bases by reference apart is no hash of their weights: one id means one place."""
    if content.kind == "base" and there.source != source:
        raise RecordConflict(f"model {there.id} is the base at {there.source or 'another place'}")
