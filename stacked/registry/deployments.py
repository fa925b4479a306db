"""Records of deployments: which group is committed, and the state of each of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from sqlalchemy import Connection, delete

from stacked.errors import RecordConflict, UpdateFailed
from stacked.registry.groups import GROUPS
from stacked.registry.paging import FIRST, Listing, builder, filter_columns
from stacked.registry.records import DeployedMember, Deployment, JsonObject, Page, Query
from stacked.registry.repository import DESCRIBED, Editable, Rows, check_fresh, differing, values
from stacked.registry.schema import deployed_members, deployments, models, upsert
from stacked.registry.states import DeploymentState, GroupState, MemberState, WorkStatus
from stacked.registry.work_requests import WORK, advance, error, finish, log


class DeploymentChanges(TypedDict, total=False):
    """What may change at any time; of `configuration` only the given names."""

    display_name: str
    description: str
    tags: JsonObject
    compartment_id: str
    configuration: JsonObject


_GIVEN = (*DESCRIBED, "configuration", "project_id")

DEPLOYMENTS = Rows(Deployment, "deployment", deployments)

_MEMBERS = Listing(
    name="members of a deployment",
    record=builder(DeployedMember),
    source=deployed_members.join(models, models.c.id == deployed_members.c.model_id),
    columns=(*deployed_members.c, models.c.display_name, models.c.project_id),
    seq=deployed_members.c.seq,
    sorts={
        "time_created": deployed_members.c.time_created,
        "display_name": models.c.display_name,
    },
    filters=filter_columns(
        ("group_id", "model_id", "key", "state", "display_name", "project_id"),
        deployed_members,
        models,
    ),
)


class DeploymentRepository(Editable[Deployment, Deployment]):
    """What is served: the committed group, the previous one, and their members' states."""

    _rows = DEPLOYMENTS
    _listing = DEPLOYMENTS.listing(Deployment, sorts=("time_created", "display_name"))
    _changes = tuple(DeploymentChanges.__annotations__)

    def create(self, deployment: Deployment) -> Deployment:
        """Record a deployment that has no group yet. Idempotent; otherwise RecordConflict."""
        if deployment.group_id is not None or deployment.generation:
            raise ValueError("a deployment begins without a group; `commit` gives it one")
        with self._database.write() as connection:
            stored = DEPLOYMENTS.find(connection, deployment.id)
            if stored is None:
                return DEPLOYMENTS.insert(connection, deployment)
            changed = differing(stored, deployment, _GIVEN)
            if changed:
                raise RecordConflict(
                    f"deployment {deployment.id} is there with other {', '.join(changed)}; "
                    "update it instead"
                )
            return stored

    def update(self, id: str, expect: Deployment | None = None, **changes: Any) -> Deployment:
        """Names, tags, compartment, and configuration that does not affect the engine."""
        if changes:
            return super().update(id, expect, **changes)
        with self._database.read() as connection:
            return DEPLOYMENTS.current(connection, id, expect)

    def _prepare(self, connection: Connection, stored: Deployment, changes: dict[str, Any]) -> None:
        if "configuration" in changes:
            changes["configuration"] = {**stored.configuration, **changes["configuration"]}

    def set_state(
        self,
        id: str,
        state: DeploymentState,
        reason: str = "",
        expect: Deployment | None = None,
    ) -> Deployment:
        """Raises IllegalMove: only one update at a time can enter UPDATING."""
        with self._database.write() as connection:
            check_fresh(DEPLOYMENTS.get(connection, id), expect)
            return DEPLOYMENTS.move(connection, id, state, reason=reason)

    def commit(
        self,
        id: str,
        group_id: str,
        generation: int,
        work_request_id: str,
        *,
        configuration: JsonObject | None = None,
        inactive: bool = False,
    ) -> Deployment:
        """The durable switch: once it returns, a restart serves this group.

        The group before it is remembered, the deployment becomes ACTIVE, and member states of
        groups older than these two are forgotten. `configuration` are the parts of it that change
        with the group; an `inactive` deployment stays so. Asking again for the same is answered the
        same. Raises RecordConflict (the group is not ACTIVE, the generation does not grow, the work
        request is not in progress) or IllegalMove (the deployment is ACTIVE: it is not updating).
        """
        with self._database.write() as connection:
            stored = DEPLOYMENTS.get(connection, id)
            wanted = (group_id, generation, work_request_id)
            if (stored.group_id, stored.generation, stored.work_request_id) == wanted:
                return stored  # a repetition: the first answer was lost
            _check_commit(connection, stored, group_id, generation, work_request_id)
            if inactive and stored.state is not DeploymentState.INACTIVE:
                raise RecordConflict(f"deployment {id} is {stored.state.value}, and not INACTIVE")
            if not inactive:
                DEPLOYMENTS.move(connection, id, DeploymentState.ACTIVE, reason="")
            settings = {**stored.configuration, **(configuration or {})}
            columns = {"work_request_id": work_request_id, "configuration": settings}
            committed = _switched(connection, stored, group_id, generation, columns)
            text = f"group {group_id} is committed, generation {generation}"
            log(connection, work_request_id, text)
            return committed

    def follow(
        self, id: str, group_id: str, generation: int, work_request_id: str | None
    ) -> Deployment:
        """What was committed elsewhere, by all that share the records, unless it is here.

        The work request may have ended; None: it is not known.
        """
        with self._database.write() as connection:
            stored = DEPLOYMENTS.get(connection, id)
            if stored.state is DeploymentState.FAILED:  # all ended; they have begun again
                stored = DEPLOYMENTS.move(connection, id, DeploymentState.ACTIVE, reason="")
            if stored.generation >= generation:
                return stored
            if stored.state is not DeploymentState.ACTIVE:
                DEPLOYMENTS.move(connection, id, DeploymentState.ACTIVE, reason="")
            if work_request_id is None or WORK.find(connection, work_request_id) is None:
                work_request_id = stored.work_request_id
            columns = {"work_request_id": work_request_id}
            _put_served(connection, id, group_id)
            return _switched(connection, stored, group_id, generation, columns)

    def end_update(self, id: str, request_id: str, failure: str) -> None:
        """End the work on an update that somebody else has begun, unless it has ended.

        `failure`: why it did not happen; empty if it did.
        """
        with self._database.write() as connection:
            request = WORK.find(connection, request_id)
            if request is None or request.time_finished is not None:
                return
            advance(connection, request_id, 0.0)  # accepted work cannot succeed
            if not failure:
                finish(connection, request_id, WorkStatus.SUCCEEDED, "ended by another replica")
                return
            error(connection, request_id, UpdateFailed.code, failure, None)
            finish(connection, request_id, WorkStatus.FAILED, failure)
            if DEPLOYMENTS.get(connection, id).state is DeploymentState.UPDATING:
                reason = f"the update failed: {failure}"
                DEPLOYMENTS.move(connection, id, DeploymentState.ACTIVE, reason=reason)

    def put_members(self, id: str, group_id: str, members: Sequence[DeployedMember]) -> None:
        """Write the state of every member of a group, in the order of the group."""
        rows = [
            {
                **values(deployed_members, member),
                "deployment_id": id,
                "group_id": group_id,
                "position": at,
            }
            for at, member in enumerate(members)
        ]
        mine = (deployed_members.c.deployment_id == id) & (deployed_members.c.group_id == group_id)
        gone = delete(deployed_members).where(mine, deployed_members.c.position >= len(members))
        with self._database.write() as connection:
            # Rows that are listed now stay, with their times: a reader may be between two pages.
            put = upsert(
                connection,
                deployed_members,
                ("deployment_id", "group_id", "position"),
                put=("model_id", "key", "state", "reason"),
            )
            DEPLOYMENTS.row(connection, id)  # raises RecordAbsent, as the next one
            GROUPS.row(connection, group_id)
            connection.execute(gone)
            if rows:
                connection.execute(put, rows)

    def list_members(self, id: str, query: Query = FIRST, **filters: Any) -> Page[DeployedMember]:
        """Those of the committed group, unless `group_id` names another.

        Of a deployment that never had one, those of the group that it was to serve.
        """
        with self._database.read() as connection:
            stored = DEPLOYMENTS.get(connection, id)
            group_id = filters.get("group_id") or stored.group_id
            group_id = group_id or stored.configuration.get("group")
            where = [
                deployed_members.c.deployment_id == id,
                deployed_members.c.group_id == group_id,
            ]
            return _MEMBERS.page(connection, query, filters, where, of=f"{id} {group_id}")


def _switched(
    connection: Connection,
    stored: Deployment,
    group_id: str,
    generation: int,
    columns: dict[str, Any],
) -> Deployment:
    """With another committed group; the states of members of older ones are forgotten."""
    previous = stored.group_id if stored.group_id != group_id else stored.previous_group_id
    connection.execute(
        delete(deployed_members).where(
            deployed_members.c.deployment_id == stored.id,
            deployed_members.c.group_id.not_in({group_id, previous or group_id}),
        )
    )
    switch = {"group_id": group_id, "generation": generation, "previous_group_id": previous}
    return DEPLOYMENTS.change(connection, stored.id, {**columns, **switch})


def _put_served(connection: Connection, id: str, group_id: str) -> None:
    """The members of a group are served, as far as nothing else is said of them."""
    for at, member in enumerate(GROUPS.get(connection, group_id).members):
        place = {"deployment_id": id, "group_id": group_id, "position": at}
        good = MemberState.SUCCESS
        state = DeployedMember(model_id=member.model_id, key=member.key, state=good)
        put = upsert(connection, deployed_members, tuple(place))
        connection.execute(put, {**values(deployed_members, state), **place})


def _check_commit(
    connection: Connection, stored: Deployment, group_id: str, generation: int, request: str
) -> None:
    state = GROUPS.row(connection, group_id)["state"]
    if state is not GroupState.ACTIVE:
        raise RecordConflict(
            f"model group {group_id} is {state.value}; only an ACTIVE group can be committed"
        )
    if generation <= stored.generation:
        raise RecordConflict(
            f"generation {generation} of deployment {stored.id} is not above {stored.generation}, "
            "which is committed"
        )
    status = WORK.row(connection, request)["status"]
    if status not in (WorkStatus.IN_PROGRESS, WorkStatus.CANCELING):
        raise RecordConflict(f"work request {request} is {status.value}; nothing can be committed")
