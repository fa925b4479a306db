"""Records of models: what may be put, described, filled and listed.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from sqlalchemy import Connection, insert, or_, select

from stacked.errors import RecordConflict
from stacked.registry import artifacts, version_sets
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import Artifact, Content, JsonObject, Model, Page, Query
from stacked.registry.rows import (
    build,
    change,
    check_fresh,
    check_kept,
    differing,
    fetch,
    move,
    values,
)
from stacked.registry.schema import deployments, group_members, groups, models
from stacked.registry.schema import version_sets as sets
from stacked.registry.states import DeploymentState, GroupState, ModelState


class ModelFilters(TypedDict, total=False):
    """None does not filter."""

    id: str | None
    display_name: str | None
    state: ModelState | None
    created_by: str | None
    compartment_id: str | None
    project_id: str | None
    kind: str | None
    digest: str | None
    category: str | None
    version_label: str | None
    version_set_name: str | None


class ModelChanges(TypedDict, total=False):
    """What may be said anew of a model, whatever its content. It joins a version set."""

    display_name: str
    description: str
    version_label: str
    version_set_id: str
    compartment_id: str
    tags: JsonObject
    extra: JsonObject


COMMON = version_sets.COMMON
SORTS = ("time_created", "display_name", "state")
_DESCRIBED = (
    "display_name",
    "source",
    "rank",
    "bytes",
    "extra",
    "tags",
    "description",
    "version_label",
)

_NAMED = models.outerjoin(sets, sets.c.id == models.c.version_set_id)
_COLUMNS = (*models.c, sets.c.display_name.label("version_set_name"))

LISTING = Listing(
    name="models",
    source=_NAMED,
    columns=_COLUMNS,
    seq=models.c.seq,
    sorts={name: models.c[name] for name in SORTS},
    filters={
        **{name: models.c[name] for name in (*COMMON, "kind", "digest")},
        **{name: models.c[name] for name in ("category", "version_label")},
        "version_set_name": sets.c.display_name,
    },
)


def put(connection: Connection, given: Sequence[Model], *, describe: bool = True) -> list[Model]:
    """Insert; what is there is described anew, or with `describe` off left as it is called.

    States stay, unless the model was deleted.
    """
    there = by_id(connection, [model.id for model in given])
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
            version_sets.join(connection, model.version_set_id, model.id)
    stored = by_id(connection, [model.id for model in given])
    return [stored[model.id] for model in given]


def by_id(connection: Connection, ids: Sequence[str]) -> dict[str, Model]:
    """The models that are there, of many ids at once."""
    wanted = select(*_COLUMNS).select_from(_NAMED).where(models.c.id.in_(set(ids)))
    return {row["id"]: build(Model, row) for row in connection.execute(wanted).mappings()}


def _put_again(connection: Connection, model: Model, describe: bool) -> None:
    stored = get(connection, model.id)
    changed = differing(stored, model, ("kind", "digest"))
    if changed:
        raise RecordConflict(
            f"model {model.id} is there with other content ({', '.join(changed)}: "
            f"{stored.kind} {stored.digest}); give the new content an id of its own"
        )
    if stored.state is ModelState.DELETED and model.state is not stored.state:
        move(connection, models, model.id, model.state, reason=model.reason)
    columns: dict[str, object] = {}
    if model.base_model_id is not None and model.base_model_id != stored.base_model_id:
        columns["base_model_id"] = model.base_model_id
    if model.kind == "base" and model.source != stored.source:
        columns["source"] = model.source  # where it stands now
    if describe and differing(stored, model, _DESCRIBED):
        columns |= {name: getattr(model, name) for name in _DESCRIBED}
    if columns:
        change(connection, models, model.id, columns)


def get(connection: Connection, id: str) -> Model:
    fetch(connection, models, id)  # raises RecordAbsent
    return by_id(connection, [id])[id]


def list_(connection: Connection, query: Query, **filters: Unpack[ModelFilters]) -> Page[Model]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(build(Model, row) for row in rows), following)


def update(connection: Connection, id: str, expect: Model | None, changes: ModelChanges) -> Model:
    check_fresh(_kept(connection, id), expect)
    joins = changes.get("version_set_id")
    if joins is not None:
        version_sets.join(connection, joins, id)
    columns = {name: value for name, value in changes.items() if name != "version_set_id"}
    change(connection, models, id, columns)
    return get(connection, id)


def set_state(
    connection: Connection, id: str, state: ModelState, reason: str, expect: Model | None
) -> Model:
    """Move a model; one that is deleted keeps this record, and none of its files."""
    check_fresh(_kept(connection, id), expect)
    if state is ModelState.DELETED:
        _check_not_served(connection, id)
        artifacts.drop(connection, id)
    move(connection, models, id, state, reason=reason)
    return get(connection, id)


def fill(
    connection: Connection, id: str, content: Content, artifact: Artifact, expect: Model | None
) -> Model:
    """Give a model its content, with the file it came as; a model of a group keeps what it has."""
    stored = _kept(connection, id)
    check_fresh(stored, expect)
    _check_refillable(connection, stored, content.digest)
    artifacts.put(connection, artifact)
    columns: Mapping[str, object] = {
        "kind": content.kind,
        "digest": content.digest,
        "bytes": content.bytes,
        "rank": content.rank,
        "base_model_id": content.base_model_id,
        "source": "",
    }
    change(connection, models, id, columns)
    return get(connection, id)


def attach(connection: Connection, artifact: Artifact, expect: Model | None, *, new: bool) -> Model:
    """Keep a file that is about metadata; `new`: whether it must, or must not, be the first."""
    stored = _kept(connection, artifact.owner_id)
    check_fresh(stored, expect)
    if new and artifacts.is_there(connection, artifact.owner_id, artifact.part):
        raise RecordConflict(f"{artifact.part} of {stored.id} has an artifact; update it instead")
    if not new:
        artifacts.get(connection, artifact.owner_id, artifact.part)
    artifacts.put(connection, artifact)
    change(connection, models, stored.id, {})
    return get(connection, stored.id)


def detach(connection: Connection, id: str, part: str, expect: Model | None) -> Model:
    check_fresh(_kept(connection, id), expect)
    artifacts.get(connection, id, part)
    artifacts.drop(connection, id, part)
    change(connection, models, id, {})
    return get(connection, id)


def _check_refillable(connection: Connection, model: Model, digest: str) -> None:
    """Raise RecordConflict where a group needs the content that the model has."""
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


def _kept(connection: Connection, id: str) -> Model:
    """A model that is not deleted."""
    stored = get(connection, id)
    check_kept(f"model {id}", stored.state)
    return stored


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
