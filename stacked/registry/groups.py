"""Records of model groups and their members, which never change once they are there.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from sqlalchemy import Connection, RowMapping, insert, select

from stacked.errors import RecordAbsent, RecordConflict
from stacked.registry import histories
from stacked.registry.models import COMMON, SORTS
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import (
    GroupMember,
    GroupModel,
    JsonObject,
    Model,
    ModelGroup,
    Page,
    Query,
)
from stacked.registry.rows import add, build, change, check_fresh, differing, fetch, find, move
from stacked.registry.schema import deployments, group_members, groups, models
from stacked.registry.states import DeploymentState, GroupState, ModelState


class GroupFilters(TypedDict, total=False):
    """None does not filter."""

    id: str | None
    display_name: str | None
    state: GroupState | None
    created_by: str | None
    compartment_id: str | None
    project_id: str | None
    version_history_id: str | None
    base_model_id: str | None
    source_group_id: str | None


class GroupChanges(TypedDict, total=False):
    display_name: str
    description: str
    version_label: str
    tags: JsonObject


class GroupModelFilters(TypedDict, total=False):
    """Of the models of one group. None does not filter."""

    id: str | None
    display_name: str | None
    state: ModelState | None
    created_by: str | None
    key: str | None


_IMMUTABLE = ("base_model_id", "members", "custom_metadata", "create_type", "source_group_id")

LISTING = Listing(
    name="model groups",
    source=groups,
    columns=tuple(groups.c),
    seq=groups.c.seq,
    sorts={name: groups.c[name] for name in SORTS},
    filters={
        name: groups.c[name]
        for name in (*COMMON, "version_history_id", "base_model_id", "source_group_id")
    },
)

MODELS_LISTING = Listing(
    name="models of a group",
    source=group_members.join(models, models.c.id == group_members.c.model_id),
    columns=(*models.c, group_members.c.key),
    seq=group_members.c.seq,
    sorts={name: models.c[name] for name in SORTS},
    filters={
        **{name: models.c[name] for name in ("id", "display_name", "state", "created_by")},
        "key": group_members.c.key,
    },
)


def create(connection: Connection, group: ModelGroup) -> ModelGroup:
    """Insert with its members, and append it to its history; a repetition changes nothing."""
    if find(connection, groups, group.id) is not None:
        return _repeated(get(connection, group.id), group)
    _check_models(connection, group)
    if group.source_group_id is not None:
        fetch(connection, groups, group.source_group_id)
    add(connection, groups, group, version_history_id=None, version=None)
    rows = [
        {"group_id": group.id, "position": at, "model_id": member.model_id, "key": member.key}
        for at, member in enumerate(group.members)
    ]
    if rows:
        connection.execute(insert(group_members), rows)
    if group.version_history_id is not None:
        append(connection, group.version_history_id, group.id)
    return get(connection, group.id)


def append(connection: Connection, history_id: str, group_id: str) -> ModelGroup:
    """Make a group the next version of a history. A group is of one history at most."""
    of = fetch(connection, groups, group_id)["version_history_id"]
    if of is None:
        change(connection, groups, group_id, histories.append(connection, history_id, group_id))
    elif of != history_id:
        raise RecordConflict(f"model group {group_id} is of version history {of} already")
    return get(connection, group_id)


def get(connection: Connection, id: str) -> ModelGroup:
    return _with_members(connection, [fetch(connection, groups, id)])[0]


def list_(
    connection: Connection, query: Query, **filters: Unpack[GroupFilters]
) -> Page[ModelGroup]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(_with_members(connection, rows)), following)


def list_models(
    connection: Connection, group_id: str, query: Query, **filters: Unpack[GroupModelFilters]
) -> Page[GroupModel]:
    fetch(connection, groups, group_id)
    where = [group_members.c.group_id == group_id]
    rows, following = read_page(connection, MODELS_LISTING, query, filters, where, group_id)
    return Page(
        tuple(GroupModel(key=row["key"], model=build(Model, row)) for row in rows), following
    )


def update(
    connection: Connection, id: str, expect: ModelGroup | None, changes: GroupChanges
) -> ModelGroup:
    check_fresh(get(connection, id), expect)
    change(connection, groups, id, dict(changes))
    return get(connection, id)


def set_state(connection: Connection, id: str, state: GroupState, reason: str) -> ModelGroup:
    """Move a group; one that a deployment has committed stays ACTIVE."""
    if state is not GroupState.ACTIVE:
        user = connection.execute(
            select(deployments.c.id).where(
                deployments.c.group_id == id, deployments.c.state != DeploymentState.DELETED
            )
        ).scalar()
        if user is not None:
            raise RecordConflict(
                f"model group {id} is what deployment {user} serves; update that one first"
            )
    move(connection, groups, id, state, reason=reason)
    return get(connection, id)


def _repeated(stored: ModelGroup, group: ModelGroup) -> ModelGroup:
    changed = differing(stored, group, _IMMUTABLE)
    if group.version_history_id not in (None, stored.version_history_id):
        changed.append("version_history_id")
    if changed:
        raise RecordConflict(
            f"model group {group.id} is there with other {', '.join(changed)}; groups do not "
            "change: create one with another id"
        )
    return stored


def _check_models(connection: Connection, group: ModelGroup) -> None:
    wanted = {group.base_model_id, *(member.model_id for member in group.members)}
    rows = connection.execute(select(models.c.id, models.c.state).where(models.c.id.in_(wanted)))
    states = {row.id: row.state for row in rows}
    absent = sorted(id for id in wanted if states.get(id, ModelState.DELETED) is ModelState.DELETED)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise RecordAbsent(
            f"model {absent[0]}{more} of group {group.id} is not there; put it first"
        )


def _with_members(connection: Connection, rows: Sequence[RowMapping]) -> list[ModelGroup]:
    found: dict[str, list[GroupMember]] = {row["id"]: [] for row in rows}
    members = connection.execute(
        select(group_members.c.group_id, group_members.c.model_id, group_members.c.key)
        .where(group_members.c.group_id.in_(found))
        .order_by(group_members.c.group_id, group_members.c.position)
    )
    for group_id, model_id, key in members:
        found[group_id].append(GroupMember(model_id, key))
    return [build(ModelGroup, row, members=tuple(found[row["id"]])) for row in rows]
