"""Version histories: lines of groups under one name, each knowing its latest.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from sqlalchemy import Connection, func, select

from stacked.errors import RecordConflict
from stacked.registry.models import COMMON, SORTS
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import JsonObject, Page, Query, VersionHistory
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
from stacked.registry.schema import groups, histories
from stacked.registry.states import GroupState, HistoryState


class HistoryFilters(TypedDict, total=False):
    """None does not filter."""

    id: str | None
    display_name: str | None
    state: HistoryState | None
    created_by: str | None
    compartment_id: str | None
    project_id: str | None


class HistoryChanges(TypedDict, total=False):
    display_name: str
    description: str
    tags: JsonObject
    latest_group_id: str
    compartment_id: str


LISTING = Listing(
    name="version histories",
    source=histories,
    columns=tuple(histories.c),
    seq=histories.c.seq,
    sorts={name: histories.c[name] for name in SORTS},
    filters={name: histories.c[name] for name in COMMON},
)


def create(connection: Connection, history: VersionHistory) -> VersionHistory:
    """Insert; what is there with the same name is answered with it."""
    row = find(connection, histories, history.id)
    if row is not None:
        stored = build(VersionHistory, row)
        if differing(stored, history, ("display_name", "compartment_id", "project_id")):
            raise RecordConflict(f"version history {history.id} is there under another name")
        return stored
    if history.latest_group_id is not None:
        raise ValueError("a version history begins empty; groups are appended to it")
    _check_name(connection, history.display_name, history.id)
    add(connection, histories, history)
    return get(connection, history.id)


def get(connection: Connection, id: str) -> VersionHistory:
    return build(VersionHistory, fetch(connection, histories, id))


def list_(
    connection: Connection, query: Query, **filters: Unpack[HistoryFilters]
) -> Page[VersionHistory]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(build(VersionHistory, row) for row in rows), following)


def update(
    connection: Connection, id: str, expect: VersionHistory | None, changes: HistoryChanges
) -> VersionHistory:
    stored = get(connection, id)
    check_kept(f"version history {id}", stored.state)
    check_fresh(stored, expect)
    if "display_name" in changes:
        _check_name(connection, changes["display_name"], id)
    if "latest_group_id" in changes:
        latest = fetch(connection, groups, changes["latest_group_id"])
        check_kept(f"model group {latest['id']}", latest["state"])
        of = latest["version_history_id"]
        if of is None:  # one that was made outside becomes the next version
            change(connection, groups, latest["id"], append(connection, id, latest["id"]))
        elif of != id:
            raise RecordConflict(f"model group {latest['id']} is of version history {of}")
    change(connection, histories, id, dict(changes))
    return get(connection, id)


def set_state(
    connection: Connection,
    id: str,
    state: HistoryState,
    reason: str,
    expect: VersionHistory | None,
) -> VersionHistory:
    stored = get(connection, id)
    check_kept(f"version history {id}", stored.state)
    check_fresh(stored, expect)
    move(connection, histories, id, state, reason=reason)
    return get(connection, id)


def append(connection: Connection, id: str, group_id: str) -> dict[str, Any]:
    """Make a group the latest of a history; what its row must say then."""
    history = get(connection, id)
    if history.state is not HistoryState.ACTIVE:
        raise RecordConflict(f"version history {id} is {history.state.value} and takes no groups")
    highest = connection.execute(
        select(func.max(groups.c.version)).where(groups.c.version_history_id == id)
    ).scalar()
    change(connection, histories, id, {"latest_group_id": group_id})
    return {"version_history_id": id, "version": (highest or 0) + 1}


def forget(connection: Connection, id: str, group_id: str) -> None:
    """A group of it was deleted: the latest is then the highest version that is left, or none."""
    if get(connection, id).latest_group_id != group_id:
        return
    left = connection.execute(
        select(groups.c.id)
        .where(groups.c.version_history_id == id, groups.c.state != GroupState.DELETED)
        .order_by(groups.c.version.desc())
        .limit(1)
    ).scalar()
    change(connection, histories, id, {"latest_group_id": left})


def _check_name(connection: Connection, name: str, id: str) -> None:
    taken = connection.execute(
        select(histories.c.id).where(
            histories.c.display_name == name,
            histories.c.state != HistoryState.DELETED,
            histories.c.id != id,
        )
    ).scalar()
    if taken is not None:
        raise RecordConflict(f"a version history named {name!r} is there already: {taken}")
