"""Records of models: what may be put, changed and listed.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from sqlalchemy import Connection, RowMapping, insert, or_, select

from stacked.errors import RecordConflict
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import Model, Page, Query
from stacked.registry.rows import build, change, differing, fetch, move, values
from stacked.registry.schema import deployments, group_members, groups, models
from stacked.registry.states import DeploymentState, ModelState


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


COMMON = ("id", "display_name", "state", "created_by", "compartment_id", "project_id")
SORTS = ("time_created", "display_name", "state")
_DESCRIBED = ("display_name", "source", "rank", "bytes", "extra", "tags")

LISTING = Listing(
    name="models",
    source=models,
    columns=tuple(models.c),
    seq=models.c.seq,
    sorts={name: models.c[name] for name in SORTS},
    filters={name: models.c[name] for name in (*COMMON, "kind", "digest")},
)


def put(connection: Connection, given: Sequence[Model]) -> list[Model]:
    """Insert, or describe anew what is there; states stay, unless the model was deleted."""
    there = _rows(connection, given)
    new: dict[str, Model] = {}
    for model in given:
        if model.id not in there:
            new.setdefault(model.id, model)
    if new:
        connection.execute(insert(models), [values(models, model) for model in new.values()])
    for model in given:
        if new.get(model.id) is not model:
            _put_again(connection, model)
    stored = _rows(connection, given)
    return [build(Model, stored[model.id]) for model in given]


def _rows(connection: Connection, given: Sequence[Model]) -> dict[str, RowMapping]:
    wanted = select(models).where(models.c.id.in_({model.id for model in given}))
    return {row["id"]: row for row in connection.execute(wanted).mappings()}


def _put_again(connection: Connection, model: Model) -> None:
    stored = get(connection, model.id)
    changed = differing(stored, model, ("kind", "digest"))
    if changed:
        raise RecordConflict(
            f"model {model.id} is there with other content ({', '.join(changed)}: "
            f"{stored.kind} {stored.digest}); give the new content an id of its own"
        )
    if stored.state is ModelState.DELETED and model.state is not stored.state:
        move(connection, models, model.id, model.state, reason=model.reason)
    if differing(stored, model, _DESCRIBED):
        change(connection, models, model.id, {name: getattr(model, name) for name in _DESCRIBED})


def get(connection: Connection, id: str) -> Model:
    return build(Model, fetch(connection, models, id))


def list_(connection: Connection, query: Query, **filters: Unpack[ModelFilters]) -> Page[Model]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(build(Model, row) for row in rows), following)


def set_state(connection: Connection, id: str, state: ModelState, reason: str) -> Model:
    if state is ModelState.DELETED:
        _check_unused(connection, id)
    move(connection, models, id, state, reason=reason)
    return get(connection, id)


def _check_unused(connection: Connection, id: str) -> None:
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
