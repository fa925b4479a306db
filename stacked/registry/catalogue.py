"""What can be deployed, as records: models, their artifacts, groups and version histories.

The half of `Registry` that is about things, not about work on them. It must not know the engine,
HTTP, or where files stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from stacked.registry import artifacts, groups, histories, models, version_sets
from stacked.registry.database import Database
from stacked.registry.paging import FIRST
from stacked.registry.records import (
    Artifact,
    Content,
    GroupModel,
    GroupSummary,
    Model,
    ModelGroup,
    ModelVersionSet,
    Page,
    Query,
    VersionHistory,
)
from stacked.registry.states import GroupState, HistoryState, ModelState


class CatalogueRecords:
    """See `Registry`. A record that is deleted can be read; changing it raises RecordAbsent."""

    _database: Database

    # -- models -----------------------------------------------------------------------------

    def put_model(self, model: Model) -> Model:
        """Record a model, or describe it anew. Raises RecordConflict for other content."""
        return self.put_models([model])[0]

    def put_models(self, given: Sequence[Model]) -> list[Model]:
        """`put_model` for all of them, or none."""
        with self._database.write() as connection:
            return models.put(connection, given)

    def keep_models(self, given: Sequence[Model]) -> list[Model]:
        """`put_models`, except that what is there keeps its names, tags and metadata."""
        with self._database.write() as connection:
            return models.put(connection, given, describe=False)

    def get_model(self, id: str) -> Model:
        with self._database.read() as connection:
            return models.get(connection, id)

    def get_models(self, ids: Sequence[str]) -> dict[str, Model]:
        """Those that are there, of many ids at once."""
        with self._database.read() as connection:
            return models.by_id(connection, ids)

    def list_models(
        self, query: Query = FIRST, **filters: Unpack[models.ModelFilters]
    ) -> Page[Model]:
        with self._database.read() as connection:
            return models.list_(connection, query, **filters)

    def update_model(
        self, id: str, expect: Model | None = None, **changes: Unpack[models.ModelChanges]
    ) -> Model:
        with self._database.write() as connection:
            return models.update(connection, id, expect, changes)

    def set_model_state(
        self, id: str, state: ModelState, reason: str = "", expect: Model | None = None
    ) -> Model:
        """Raises IllegalMove, and RecordConflict for deleting what a deployment serves."""
        with self._database.write() as connection:
            return models.set_state(connection, id, state, reason, expect)

    def fill_model(
        self, id: str, content: Content, artifact: Artifact, expect: Model | None = None
    ) -> Model:
        """Give a model its content and the file it came as.

        Raises RecordConflict for other content than it has, where it is in a group.
        """
        with self._database.write() as connection:
            return models.fill(connection, id, content, artifact, expect)

    # -- artifacts --------------------------------------------------------------------------

    def attach_artifact(
        self, artifact: Artifact, expect: Model | None = None, *, new: bool
    ) -> Model:
        """Keep a file about one metadatum of a model.

        `new`: it must not be there yet (RecordConflict); else it must (RecordAbsent).
        """
        with self._database.write() as connection:
            return models.attach(connection, artifact, expect, new=new)

    def detach_artifact(self, id: str, part: str, expect: Model | None = None) -> Model:
        """Forget a file about one metadatum of a model."""
        with self._database.write() as connection:
            return models.detach(connection, id, part, expect)

    def attach_group_artifact(
        self, artifact: Artifact, expect: ModelGroup | None = None
    ) -> ModelGroup:
        """Keep the file of a HOMOGENEOUS group. Raises RecordConflict for another kind or file."""
        with self._database.write() as connection:
            return groups.attach(connection, artifact, expect)

    def remember_artifact(self, artifact: Artifact) -> None:
        """Keep a file that was made here; its owner has not changed by it."""
        with self._database.write() as connection:
            artifacts.put(connection, artifact)

    def get_artifact(self, owner_id: str, part: str = "") -> Artifact:
        with self._database.read() as connection:
            return artifacts.get(connection, owner_id, part)

    def artifacts_of(self, owner_id: str) -> tuple[Artifact, ...]:
        with self._database.read() as connection:
            return artifacts.of(connection, owner_id)

    def artifact_files(self) -> frozenset[str]:
        """The sha256 of every file that a record needs."""
        with self._database.read() as connection:
            return artifacts.files(connection)

    def needs_file(self, sha256: str) -> bool:
        with self._database.read() as connection:
            return artifacts.needs(connection, sha256)

    # -- version sets of models -------------------------------------------------------------

    def create_version_set(self, new: ModelVersionSet) -> ModelVersionSet:
        """Raises RecordConflict for a name that is taken."""
        with self._database.write() as connection:
            return version_sets.create(connection, new)

    def get_version_set(self, id: str) -> ModelVersionSet:
        with self._database.read() as connection:
            return version_sets.get(connection, id)

    def list_version_sets(
        self, query: Query = FIRST, **filters: Unpack[version_sets.VersionSetFilters]
    ) -> Page[ModelVersionSet]:
        with self._database.read() as connection:
            return version_sets.list_(connection, query, **filters)

    def update_version_set(
        self,
        id: str,
        expect: ModelVersionSet | None = None,
        **changes: Unpack[version_sets.VersionSetChanges],
    ) -> ModelVersionSet:
        with self._database.write() as connection:
            return version_sets.update(connection, id, expect, changes)

    def delete_version_set(self, id: str, expect: ModelVersionSet | None = None) -> ModelVersionSet:
        """Raises RecordConflict while a model of it is not deleted."""
        with self._database.write() as connection:
            return version_sets.delete(connection, id, expect)

    def models_of_version_set(self, id: str) -> list[str]:
        """The ids of its models that are not deleted, by version."""
        with self._database.read() as connection:
            return version_sets.models_of(connection, id)

    # -- version histories ------------------------------------------------------------------

    def create_version_history(self, history: VersionHistory) -> VersionHistory:
        """Idempotent; a latest group becomes its first version.

        Raises RecordConflict for a name that is taken, or a group of another history.
        """
        with self._database.write() as connection:
            made = histories.create(connection, replace(history, latest_group_id=None))
            if history.latest_group_id is None:
                return made
            groups.append(connection, made.id, history.latest_group_id)
            return histories.get(connection, made.id)

    def get_version_history(self, id: str) -> VersionHistory:
        with self._database.read() as connection:
            return histories.get(connection, id)

    def list_version_histories(
        self, query: Query = FIRST, **filters: Unpack[histories.HistoryFilters]
    ) -> Page[VersionHistory]:
        with self._database.read() as connection:
            return histories.list_(connection, query, **filters)

    def update_version_history(
        self,
        id: str,
        expect: VersionHistory | None = None,
        **changes: Unpack[histories.HistoryChanges],
    ) -> VersionHistory:
        """A latest group that is of no history yet becomes its next version.

        Raises RecordConflict for a name that is taken, or a latest group of another history.
        """
        with self._database.write() as connection:
            return histories.update(connection, id, expect, changes)

    def append_version(self, history_id: str, group_id: str) -> ModelGroup:
        """Make a group that is of no history yet the next version of one. Idempotent."""
        with self._database.write() as connection:
            return groups.append(connection, history_id, group_id)

    def set_version_history_state(
        self,
        id: str,
        state: HistoryState,
        reason: str = "",
        expect: VersionHistory | None = None,
    ) -> VersionHistory:
        """Raises IllegalMove."""
        with self._database.write() as connection:
            return histories.set_state(connection, id, state, reason, expect)

    # -- groups -----------------------------------------------------------------------------

    def create_group(self, group: ModelGroup, *, check: bool = False) -> ModelGroup:
        """Record a group; with a version history, as the next version and the latest of it.

        Idempotent: the same id with the same base, members, metadata and origin is answered with
        what is there, and with other ones raises RecordConflict. With `check`, GroupInvalid or
        RecordConflict where its models do not make a group of its kind.
        """
        with self._database.write() as connection:
            return groups.create(connection, group, check=check)

    def get_group(self, id: str) -> ModelGroup:
        with self._database.read() as connection:
            return groups.get(connection, id)

    def list_groups(
        self, query: Query = FIRST, **filters: Unpack[groups.GroupFilters]
    ) -> Page[GroupSummary]:
        with self._database.read() as connection:
            return groups.list_(connection, query, **filters)

    def list_group_models(
        self, group_id: str, query: Query = FIRST, **filters: Unpack[groups.GroupModelFilters]
    ) -> Page[GroupModel]:
        with self._database.read() as connection:
            return groups.list_models(connection, group_id, query, **filters)

    def update_group(
        self, id: str, expect: ModelGroup | None = None, **changes: Unpack[groups.GroupChanges]
    ) -> ModelGroup:
        """Raises RecordConflict where the group is of another history already."""
        with self._database.write() as connection:
            return groups.update(connection, id, expect, changes)

    def set_group_state(
        self, id: str, state: GroupState, reason: str = "", expect: ModelGroup | None = None
    ) -> ModelGroup:
        """Raises IllegalMove, and RecordConflict for a group that a deployment has committed."""
        with self._database.write() as connection:
            return groups.set_state(connection, id, state, reason, expect)
