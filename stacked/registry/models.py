"""Records of models: put, described, filled and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, or_, select

from stacked.errors import RecordConflict
from stacked.registry import artifacts
from stacked.registry.records import Artifact, Content, Model
from stacked.registry.repository import DESCRIBED, FILTERS, Editable, Rows, differing, values
from stacked.registry.schema import deployments, group_members, groups, models
from stacked.registry.schema import version_sets as sets
from stacked.registry.states import DeploymentState, GroupState, ModelState
from stacked.registry.versions import SETS

# What a model that is put again gets anew.
_PUT = ("display_name", "description", "tags", "version_label", "source", "rank", "bytes", "extra")

MODELS = Rows(
    Model,
    "model",
    models,
    models.outerjoin(sets, sets.c.id == models.c.version_set_id),
    sets.c.display_name.label("version_set_name"),
)


class ModelRepository(Editable[Model, Model]):
    """Bases, adapters, and models that have no content yet."""

    _rows = MODELS
    _listing = MODELS.listing(
        Model,
        (*FILTERS, "kind", "digest", "category", "version_label"),
        version_set_name=sets.c.display_name,
    )
    _changes = (*DESCRIBED, "version_label", "version_set_id", "extra")

    def put(self, model: Model) -> Model:
        """Record a model, or update its description. Raises RecordConflict for other content."""
        return self.put_all([model])[0]

    def put_all(self, given: Sequence[Model], *, describe: bool = True) -> Sequence[Model]:
        """`put` for all of them, or none.

        Without `describe`, existing models keep their names, tags and metadata. States stay, unless
        the model was deleted.
        """
        with self._database.write() as connection:
            there = MODELS.get_many(connection, [model.id for model in given])
            new: dict[str, Model] = {}
            for model in given:
                if model.id not in there:
                    new.setdefault(model.id, model)
            if new:
                alone = {"version_set_id": None, "version": None}
                rows = [values(models, model) | alone for model in new.values()]
                connection.execute(insert(models), rows)
            for model in given:
                if new.get(model.id) is not model:
                    _put_again(connection, model, describe)
                if describe and model.version_set_id is not None:
                    SETS.join(connection, model.version_set_id, model.id)
            stored = MODELS.get_many(connection, [model.id for model in given])
            return [stored[model.id] for model in given]

    def get_many(self, ids: Sequence[str]) -> dict[str, Model]:
        """The existing ones, by id."""
        with self._database.read() as connection:
            return MODELS.get_many(connection, ids)

    def _prepare(self, connection: Connection, stored: Model, changes: dict[str, Any]) -> None:
        SETS.take(connection, stored.id, changes)

    def _leave(self, connection: Connection, stored: Model, state: ModelState) -> None:
        """A deleted model keeps its record, and none of its files; RecordConflict if served."""
        if state is ModelState.DELETED:
            _check_not_served(connection, stored.id)
            artifacts.drop(connection, stored.id)

    def fill(
        self, id: str, content: Content, artifact: Artifact, expect: Model | None = None
    ) -> Model:
        """Give a model its content and the file that it was uploaded as.

        Raises RecordConflict for content other than it has, if it is in a group.
        """
        with self._database.write() as connection:
            stored = MODELS.current(connection, id, expect)
            _check_refillable(connection, stored, content.digest)
            artifacts.put(connection, artifact)
            return MODELS.change(connection, id, {**asdict(content), "source": ""})

    def attach(self, artifact: Artifact, expect: Model | None = None, *, new: bool) -> Model:
        """Record a file about one metadatum of a model.

        `new`: it must not exist yet (RecordConflict); otherwise it must (RecordAbsent).
        """
        id, part = artifact.owner_id, artifact.part
        with self._database.write() as connection:
            MODELS.current(connection, id, expect)
            if not new:
                artifacts.get(connection, id, part)
            elif artifacts.find(connection, id, part) is not None:
                raise RecordConflict(f"{part} of {id} has an artifact; update it instead")
            artifacts.put(connection, artifact)
            return MODELS.change(connection, id, {})

    def detach(self, id: str, part: str, expect: Model | None = None) -> Model:
        """Delete the record of a file about one metadatum of a model."""
        with self._database.write() as connection:
            MODELS.current(connection, id, expect)
            artifacts.get(connection, id, part)
            artifacts.drop(connection, id, part)
            return MODELS.change(connection, id, {})


def _put_again(connection: Connection, model: Model, describe: bool) -> None:
    stored = MODELS.get(connection, model.id)
    changed = differing(stored, model, ("kind", "digest"))
    if changed:
        raise RecordConflict(
            f"model {model.id} is there with other content ({', '.join(changed)}: "
            f"{stored.kind} {stored.digest}); give the new content an id of its own"
        )
    if stored.state is ModelState.DELETED and model.state is not stored.state:
        MODELS.move(connection, model.id, model.state, reason=model.reason)
    columns: dict[str, object] = {}
    if model.base_model_id is not None and model.base_model_id != stored.base_model_id:
        columns["base_model_id"] = model.base_model_id
    if model.kind == "base" and model.source != stored.source:
        columns["source"] = model.source  # where it stands now
    if describe and differing(stored, model, _PUT):
        columns |= {name: getattr(model, name) for name in _PUT}
    if columns:
        MODELS.change(connection, model.id, columns)


def _check_refillable(connection: Connection, model: Model, digest: str) -> None:
    """Raise RecordConflict if a group needs the model's content."""
    if not model.digest or digest == model.digest:
        return
    member = select(groups.c.id).join(group_members, group_members.c.group_id == groups.c.id)
    of = or_(group_members.c.model_id == model.id, groups.c.base_model_id == model.id)
    user = connection.execute(
        member.where(of, groups.c.state != GroupState.DELETED).limit(1)
    ).scalar()
    if user is not None:
        raise RecordConflict(
            f"model {model.id} is in model group {user}, whose content does not change; "
            "create another model for the new artifact"
        )


def _check_not_served(connection: Connection, id: str) -> None:
    """A restart needs every model of a committed group."""
    members = select(group_members.c.group_id).where(group_members.c.model_id == id)
    user = connection.execute(
        select(deployments.c.id)
        .join(groups, groups.c.id == deployments.c.group_id)
        .where(deployments.c.state != DeploymentState.DELETED)
        .where(or_(groups.c.base_model_id == id, groups.c.id.in_(members)))
    ).scalar()
    if user is not None:
        raise RecordConflict(f"model {id} is served by deployment {user}; take it out of its group")
