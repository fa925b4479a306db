"""Version sets: models under one name, each the next version of it.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from sqlalchemy import Connection, func, literal, select

from stacked.errors import RecordConflict
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import JsonObject, ModelVersionSet, Page, Query
from stacked.registry.rows import add, build, change, check_fresh, check_kept, fetch, move
from stacked.registry.schema import models
from stacked.registry.schema import version_sets as sets
from stacked.registry.states import HistoryState, ModelState

COMMON = ("id", "display_name", "state", "created_by", "compartment_id", "project_id")


class VersionSetFilters(TypedDict, total=False):
    """None does not filter."""

    id: str | None
    display_name: str | None
    state: HistoryState | None
    created_by: str | None
    compartment_id: str | None
    project_id: str | None
    category: str | None


class VersionSetChanges(TypedDict, total=False):
    """Its name stays: models are found by it."""

    description: str
    tags: JsonObject
    compartment_id: str


LISTING = Listing(
    name="model version sets",
    source=sets,
    columns=tuple(sets.c),
    seq=sets.c.seq,
    sorts={name: sets.c[name] for name in ("time_created", "display_name", "state")},
    # All that are here are users'.
    filters={**{name: sets.c[name] for name in COMMON}, "category": literal("USER")},
)


def create(connection: Connection, new: ModelVersionSet) -> ModelVersionSet:
    taken = connection.execute(
        select(sets.c.id).where(
            sets.c.display_name == new.display_name, sets.c.state != HistoryState.DELETED
        )
    ).scalar()
    if taken is not None:
        raise RecordConflict(
            f"a model version set named {new.display_name!r} is there already: {taken}"
        )
    add(connection, sets, new)
    return get(connection, new.id)


def get(connection: Connection, id: str) -> ModelVersionSet:
    return build(ModelVersionSet, fetch(connection, sets, id))


def list_(
    connection: Connection, query: Query, **filters: Unpack[VersionSetFilters]
) -> Page[ModelVersionSet]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(build(ModelVersionSet, row) for row in rows), following)


def update(
    connection: Connection, id: str, expect: ModelVersionSet | None, changes: VersionSetChanges
) -> ModelVersionSet:
    _kept(connection, id, expect)
    change(connection, sets, id, dict(changes))
    return get(connection, id)


def delete(connection: Connection, id: str, expect: ModelVersionSet | None) -> ModelVersionSet:
    """Leave the record alone. Raises RecordConflict while a model of it is not deleted."""
    _kept(connection, id, expect)
    left = models_of(connection, id)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise RecordConflict(
            f"model {left[0]}{more} of model version set {id} is not deleted; delete its models, "
            "or have them deleted with isDeleteRelatedModels=true"
        )
    move(connection, sets, id, HistoryState.DELETING)
    move(connection, sets, id, HistoryState.DELETED)
    return get(connection, id)


def models_of(connection: Connection, id: str) -> list[str]:
    """Its models that are not deleted, by version."""
    wanted = select(models.c.id).where(
        models.c.version_set_id == id, models.c.state != ModelState.DELETED
    )
    return list(connection.execute(wanted.order_by(models.c.version)).scalars())


def join(connection: Connection, id: str, model_id: str) -> None:
    """Make a model the next version of a set. A model is of one set at most."""
    of = fetch(connection, models, model_id)["version_set_id"]
    if of == id:
        return
    if of is not None:
        raise RecordConflict(f"model {model_id} is of model version set {of} already")
    _kept(connection, id, None)
    highest = connection.execute(
        select(func.max(models.c.version)).where(models.c.version_set_id == id)
    ).scalar()
    columns = {"version_set_id": id, "version": (highest or 0) + 1}
    change(connection, models, model_id, columns)


def _kept(connection: Connection, id: str, expect: ModelVersionSet | None) -> None:
    stored = get(connection, id)
    check_kept(f"model version set {id}", stored.state)
    check_fresh(stored, expect)
