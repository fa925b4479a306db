"""Records of deployments: which group is committed, and how its members fared.

It must not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from sqlalchemy import Connection, delete
from sqlalchemy.dialects.sqlite import insert

from stacked.errors import RecordAbsent, RecordConflict
from stacked.registry import work_requests as work
from stacked.registry.models import COMMON
from stacked.registry.paging import Listing, read_page
from stacked.registry.records import DeployedMember, Deployment, JsonObject, Page, Query
from stacked.registry.rows import add, build, change, check_fresh, differing, fetch, find, move
from stacked.registry.schema import deployed_members, deployments, groups, models, work_requests
from stacked.registry.states import DeploymentState, GroupState, MemberState, WorkStatus


class DeploymentFilters(TypedDict, total=False):
    """None does not filter."""

    id: str | None
    display_name: str | None
    state: DeploymentState | None
    created_by: str | None
    compartment_id: str | None
    project_id: str | None


class DeploymentChanges(TypedDict, total=False):
    """What may change at any time. Of `configuration`, only the names that are given."""

    display_name: str
    description: str
    tags: JsonObject
    compartment_id: str
    configuration: JsonObject


class MemberFilters(TypedDict, total=False):
    """Of the members of one deployment. None does not filter."""

    group_id: str | None
    model_id: str | None
    key: str | None
    state: MemberState | None
    display_name: str | None
    project_id: str | None


_DESCRIBED = ("display_name", "description", "configuration", "tags")

LISTING = Listing(
    name="deployments",
    source=deployments,
    columns=tuple(deployments.c),
    seq=deployments.c.seq,
    sorts={name: deployments.c[name] for name in ("time_created", "display_name")},
    filters={name: deployments.c[name] for name in COMMON},
)

_MEMBER = ("group_id", "model_id", "key", "state")

MEMBERS_LISTING = Listing(
    name="members of a deployment",
    source=deployed_members.join(models, models.c.id == deployed_members.c.model_id),
    columns=(*deployed_members.c, models.c.display_name, models.c.project_id),
    seq=deployed_members.c.seq,
    sorts={
        "time_created": deployed_members.c.time_created,
        "display_name": models.c.display_name,
    },
    filters={
        **{name: deployed_members.c[name] for name in _MEMBER},
        **{name: models.c[name] for name in ("display_name", "project_id")},
    },
)


def create(connection: Connection, deployment: Deployment) -> Deployment:
    """Insert, without a group; a repetition changes nothing."""
    if deployment.group_id is not None or deployment.generation:
        raise ValueError("a deployment begins without a group; commit_group gives it one")
    row = find(connection, deployments, deployment.id)
    if row is None:
        add(connection, deployments, deployment)
        return get(connection, deployment.id)
    stored = build(Deployment, row)
    changed = differing(stored, deployment, (*_DESCRIBED, "compartment_id", "project_id"))
    if changed:
        raise RecordConflict(
            f"deployment {deployment.id} is there with other {', '.join(changed)}; put it instead"
        )
    return stored


def put(connection: Connection, deployment: Deployment, expect: Deployment | None) -> Deployment:
    """Insert, or write its names, configuration and tags; state and group stay."""
    row = find(connection, deployments, deployment.id)
    if row is None and expect is None:
        return create(connection, deployment)
    stored = check_fresh(get(connection, deployment.id), expect)
    if differing(stored, deployment, _DESCRIBED):
        values = {name: getattr(deployment, name) for name in _DESCRIBED}
        change(connection, deployments, deployment.id, values)
    return get(connection, deployment.id)


def get(connection: Connection, id: str) -> Deployment:
    return build(Deployment, fetch(connection, deployments, id))


def list_(
    connection: Connection, query: Query, **filters: Unpack[DeploymentFilters]
) -> Page[Deployment]:
    rows, following = read_page(connection, LISTING, query, filters)
    return Page(tuple(build(Deployment, row) for row in rows), following)


def update(
    connection: Connection, id: str, expect: Deployment | None, changes: DeploymentChanges
) -> Deployment:
    """Write what is given; what a deleted one was called stays."""
    stored = check_fresh(get(connection, id), expect)
    if stored.state is DeploymentState.DELETED:
        raise RecordAbsent(f"deployment {id} is DELETED; only its record is left")
    columns: dict[str, Any] = dict(changes)
    if "configuration" in columns:
        columns["configuration"] = {**stored.configuration, **columns["configuration"]}
    if columns:
        change(connection, deployments, id, columns)
    return get(connection, id)


def set_state(
    connection: Connection,
    id: str,
    state: DeploymentState,
    reason: str,
    expect: Deployment | None = None,
) -> Deployment:
    check_fresh(get(connection, id), expect)
    move(connection, deployments, id, state, reason=reason)
    return get(connection, id)


def commit(
    connection: Connection,
    id: str,
    group_id: str,
    generation: int,
    work_request_id: str,
    *,
    configuration: JsonObject | None = None,
    inactive: bool = False,
) -> Deployment:
    """Make a group the one that a restart serves, and remember the one before it."""
    stored = get(connection, id)
    wanted = (group_id, generation, work_request_id)
    if (stored.group_id, stored.generation, stored.work_request_id) == wanted:
        return stored  # asked again, because the first answer was lost
    _check_commit(connection, stored, group_id, generation, work_request_id)
    previous = stored.group_id if stored.group_id != group_id else stored.previous_group_id
    columns: dict[str, Any] = {
        "group_id": group_id,
        "generation": generation,
        "previous_group_id": previous,
        "work_request_id": work_request_id,
        "configuration": {**stored.configuration, **(configuration or {})},
    }
    if inactive:
        if stored.state is not DeploymentState.INACTIVE:
            raise RecordConflict(f"deployment {id} is {stored.state.value}, and not INACTIVE")
        change(connection, deployments, id, columns)
    else:
        move(connection, deployments, id, DeploymentState.ACTIVE, reason="", **columns)
    connection.execute(
        delete(deployed_members).where(
            deployed_members.c.deployment_id == id,
            deployed_members.c.group_id.not_in({group_id, previous or group_id}),
        )
    )
    work.log(connection, work_request_id, f"group {group_id} is committed, generation {generation}")
    return get(connection, id)


def _check_commit(
    connection: Connection, stored: Deployment, group_id: str, generation: int, request: str
) -> None:
    state = fetch(connection, groups, group_id)["state"]
    if state is not GroupState.ACTIVE:
        raise RecordConflict(
            f"model group {group_id} is {state.value}; only an ACTIVE group can be committed"
        )
    if generation <= stored.generation:
        raise RecordConflict(
            f"generation {generation} of deployment {stored.id} is not above {stored.generation}, "
            "which is committed"
        )
    status = fetch(connection, work_requests, request)["status"]
    if status not in (WorkStatus.IN_PROGRESS, WorkStatus.CANCELING):
        raise RecordConflict(f"work request {request} is {status.value}; nothing can be committed")


def put_members(
    connection: Connection, id: str, group_id: str, members: Sequence[DeployedMember]
) -> None:
    """Write how each member of a group fared, in the group's order; what was said is replaced."""
    fetch(connection, deployments, id)
    fetch(connection, groups, group_id)
    mine = (deployed_members.c.deployment_id == id) & (deployed_members.c.group_id == group_id)
    connection.execute(
        delete(deployed_members).where(mine, deployed_members.c.position >= len(members))
    )
    if not members:
        return
    row = insert(deployed_members)
    kept = ("deployment_id", "group_id", "position", "time_created")  # rows that are listed now
    row = row.on_conflict_do_update(
        index_elements=kept[:3],
        set_={name: row.excluded[name] for name in ("model_id", "key", "state", "reason")},
    )
    connection.execute(
        row,
        [
            {
                "deployment_id": id,
                "group_id": group_id,
                "position": at,
                "model_id": member.model_id,
                "key": member.key,
                "state": member.state,
                "reason": member.reason,
                "time_created": member.time_created,
            }
            for at, member in enumerate(members)
        ],
    )


def list_members(
    connection: Connection, id: str, query: Query, **filters: Unpack[MemberFilters]
) -> Page[DeployedMember]:
    """How members fared; those of the committed group, unless `group_id` names another.

    Of a deployment that never had one, those of the group that it was to serve.
    """
    stored = get(connection, id)
    group_id = filters.get("group_id") or stored.group_id or stored.configuration.get("group")
    where = [deployed_members.c.deployment_id == id, deployed_members.c.group_id == group_id]
    rows, following = read_page(
        connection, MEMBERS_LISTING, query, filters, where, f"{id} {group_id}"
    )
    return Page(tuple(build(DeployedMember, row) for row in rows), following)
