"""Records of model groups and their members, which never change once they are there.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select

from stacked.errors import RecordAbsent, RecordConflict
from stacked.registry import artifacts, histories
from stacked.registry.composition import check_composition
from stacked.registry.models import COMMON, SORTS, by_id
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import (
    Artifact,
    GroupMember,
    GroupModel,
    GroupSummary,
    JsonObject,
    Model,
    ModelGroup,
    Page,
    Query,
)
from stacked.registry.rows import (
    add,
    build,
    change,
    check_fresh,
    check_kept,
    differing,
    fetch,
    find,
    move,
)
from stacked.registry.schema import deployments, group_members, groups, models
from stacked.registry.schema import histories as lines
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
    kind: str | None


class GroupChanges(TypedDict, total=False):
    """A history is one that the group joins; it leaves none."""

    display_name: str
    description: str
    version_label: str
    version_history_id: str
    compartment_id: str
    tags: JsonObject


class GroupModelFilters(TypedDict, total=False):
    """Of the models of one group. None does not filter."""

    id: str | None
    display_name: str | None
    state: ModelState | None
    created_by: str | None
    key: str | None


_IMMUTABLE = (
    "kind",
    "base_model_id",
    "members",
    "custom_metadata",
    "create_type",
    "source_group_id",
)

_NAMED = groups.outerjoin(lines, lines.c.id == groups.c.version_history_id)
_COLUMNS = (*groups.c, lines.c.display_name.label("version_history_name"))

LISTING = Listing(
    name="model groups",
    source=_NAMED,
    columns=_COLUMNS,
    seq=groups.c.seq,
    sorts={name: groups.c[name] for name in SORTS},
    filters={
        name: groups.c[name]
        for name in (*COMMON, "version_history_id", "base_model_id", "source_group_id", "kind")
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


def create(connection: Connection, group: ModelGroup, *, check: bool = False) -> ModelGroup:
    """Insert with its members, and append it to its history; a repetition changes nothing.

    With `check`, its models must make a group of its kind, now.
    """
    if find(connection, groups, group.id) is not None:
        return _repeated(get(connection, group.id), group)
    _check_models(connection, group, check)
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
    fetch(connection, groups, id)  # raises RecordAbsent
    wanted = select(*_COLUMNS).select_from(_NAMED).where(groups.c.id == id)
    row = connection.execute(wanted).mappings().one()
    members = connection.execute(
        select(group_members.c.model_id, group_members.c.key)
        .where(group_members.c.group_id == id)
        .order_by(group_members.c.position)
    )
    return build(ModelGroup, row, members=tuple(GroupMember(*member) for member in members))


def list_(
    connection: Connection, query: Query, **filters: Unpack[GroupFilters]
) -> Page[GroupSummary]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(build(GroupSummary, row) for row in rows), following)


def list_models(
    connection: Connection, group_id: str, query: Query, **filters: Unpack[GroupModelFilters]
) -> Page[GroupModel]:
    fetch(connection, groups, group_id)
    where: list[ColumnElement[bool]] = [group_members.c.group_id == group_id]
    rows, following = read_page(connection, MODELS_LISTING, query, filters, where, group_id)
    return Page(tuple(_group_model(row) for row in rows), following)


def update(
    connection: Connection, id: str, expect: ModelGroup | None, changes: GroupChanges
) -> ModelGroup:
    stored = _kept(connection, id)
    check_fresh(stored, expect)
    joins = changes.get("version_history_id")
    if joins is not None:
        append(connection, joins, id)
    columns = {name: value for name, value in changes.items() if name != "version_history_id"}
    change(connection, groups, id, columns)
    return get(connection, id)


def set_state(
    connection: Connection, id: str, state: GroupState, reason: str, expect: ModelGroup | None
) -> ModelGroup:
    """Move a group; one that a deployment has committed stays ACTIVE."""
    stored = _kept(connection, id)
    check_fresh(stored, expect)
    if state is not GroupState.ACTIVE:
        _check_not_served(connection, id)
    move(connection, groups, id, state, reason=reason)
    if state is GroupState.DELETED:
        artifacts.drop(connection, id)
        if stored.version_history_id is not None:
            histories.forget(connection, stored.version_history_id, id)
    return get(connection, id)


def attach(connection: Connection, artifact: Artifact, expect: ModelGroup | None) -> ModelGroup:
    """Keep the file that a HOMOGENEOUS group is loaded with, once."""
    stored = _kept(connection, artifact.owner_id)
    check_fresh(stored, expect)
    if stored.kind != "HOMOGENEOUS":
        raise RecordConflict(
            f"model group {stored.id} is {stored.kind}; only a HOMOGENEOUS group has an artifact"
        )
    if artifacts.is_there(connection, stored.id, ""):
        there = artifacts.get(connection, stored.id, "")
        if there.sha256 != artifact.sha256:
            raise RecordConflict(
                f"model group {stored.id} has its artifact, and groups do not change; "
                "create another group"
            )
    artifacts.put(connection, artifact)
    change(connection, groups, stored.id, {})
    return get(connection, stored.id)


def _kept(connection: Connection, id: str) -> ModelGroup:
    """A group that is not deleted."""
    stored = get(connection, id)
    check_kept(f"model group {id}", stored.state)
    return stored


def _check_not_served(connection: Connection, id: str) -> None:
    user = connection.execute(
        select(deployments.c.id).where(
            deployments.c.group_id == id, deployments.c.state != DeploymentState.DELETED
        )
    ).scalar()
    if user is not None:
        raise RecordConflict(
            f"model group {id} is what deployment {user} serves; update that one first"
        )


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


def _check_models(connection: Connection, group: ModelGroup, check: bool) -> None:
    base = {group.base_model_id} if group.base_model_id else set()
    wanted = base | {member.model_id for member in group.members}
    there = by_id(connection, sorted(wanted))
    absent = sorted(id for id in wanted if id not in there or there[id].state is ModelState.DELETED)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise RecordAbsent(
            f"model {absent[0]}{more} of group {group.id} is not there; put it first"
        )
    if check:
        checked = {model.base_model_id for model in there.values() if model.base_model_id}
        check_composition(group, {**by_id(connection, sorted(checked)), **there})


def _group_model(row: RowMapping) -> GroupModel:
    return GroupModel(key=row["key"], model=build(Model, row))
