"""The durable records: one method, one transaction. What a method has returned survives a kill.

It must not know the engine, HTTP, or who may do what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Unpack

from stacked.registry import deployments, groups, histories, models, recovery, work_requests
from stacked.registry.database import Database
from stacked.registry.ids import WORK_REQUEST, new_id
from stacked.registry.paging import FIRST
from stacked.registry.records import (
    Affected,
    DeployedMember,
    Deployment,
    GroupModel,
    Model,
    ModelGroup,
    Page,
    Query,
    Recovered,
    VersionHistory,
    WorkError,
    WorkLog,
    WorkRequest,
)
from stacked.registry.states import (
    DeploymentState,
    GroupState,
    HistoryState,
    ModelState,
    WorkStatus,
)


class Registry:
    """The records in one file. Every method blocks, and may be called from any thread.

    Open it once per process; only the holder of `lock_data_dir` may write. All methods raise
    RegistryUnusable; those that name a record raise RecordAbsent; those that list, PageInvalid.
    `expect` is a record as the caller has read it: RecordStale where it is another one by now.
    """

    def __init__(self, path: Path, *, busy_seconds: float = 10.0) -> None:
        """Open the file, made or brought to this version where needed. `recover` is not called."""
        self._database = Database(Path(path), busy_seconds)

    def close(self) -> None:
        """Twice is once."""
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def recover(self) -> Recovered:
        """Settle what a killed process left in progress; call it once, before anything begins."""
        with self._database.write() as connection:
            return recovery.recover(connection)

    # -- models -----------------------------------------------------------------------------

    def put_model(self, model: Model) -> Model:
        """Record a model, or describe it anew. Raises RecordConflict for other content."""
        return self.put_models([model])[0]

    def put_models(self, given: Sequence[Model]) -> list[Model]:
        """`put_model` for all of them, or none."""
        with self._database.write() as connection:
            return models.put(connection, given)

    def get_model(self, id: str) -> Model:
        with self._database.read() as connection:
            return models.get(connection, id)

    def list_models(
        self, query: Query = FIRST, **filters: Unpack[models.ModelFilters]
    ) -> Page[Model]:
        with self._database.read() as connection:
            return models.list_(connection, query, **filters)

    def set_model_state(self, id: str, state: ModelState, reason: str = "") -> Model:
        """Raises IllegalMove, and RecordConflict for deleting what a deployment serves."""
        with self._database.write() as connection:
            return models.set_state(connection, id, state, reason)

    # -- version histories ------------------------------------------------------------------

    def create_version_history(self, history: VersionHistory) -> VersionHistory:
        """Idempotent. Raises RecordConflict for a name that is taken."""
        with self._database.write() as connection:
            return histories.create(connection, history)

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
        """Raises RecordConflict for a name that is taken, or a latest group of another history."""
        with self._database.write() as connection:
            return histories.update(connection, id, expect, changes)

    def append_version(self, history_id: str, group_id: str) -> ModelGroup:
        """Make a group that is of no history yet the next version of one. Idempotent."""
        with self._database.write() as connection:
            return groups.append(connection, history_id, group_id)

    def set_version_history_state(
        self, id: str, state: HistoryState, reason: str = ""
    ) -> VersionHistory:
        """Raises IllegalMove."""
        with self._database.write() as connection:
            return histories.set_state(connection, id, state, reason)

    # -- groups -----------------------------------------------------------------------------

    def create_group(self, group: ModelGroup) -> ModelGroup:
        """Record a group; with a version history, as the next version and the latest of it.

        Idempotent: the same id with the same base, members, metadata and origin is answered with
        what is there, and with other ones raises RecordConflict.
        """
        with self._database.write() as connection:
            return groups.create(connection, group)

    def get_group(self, id: str) -> ModelGroup:
        with self._database.read() as connection:
            return groups.get(connection, id)

    def list_groups(
        self, query: Query = FIRST, **filters: Unpack[groups.GroupFilters]
    ) -> Page[ModelGroup]:
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
        with self._database.write() as connection:
            return groups.update(connection, id, expect, changes)

    def set_group_state(self, id: str, state: GroupState, reason: str = "") -> ModelGroup:
        """Raises IllegalMove, and RecordConflict for a group that a deployment has committed."""
        with self._database.write() as connection:
            return groups.set_state(connection, id, state, reason)

    # -- deployments ------------------------------------------------------------------------

    def create_deployment(self, deployment: Deployment) -> Deployment:
        """Record a deployment that has no group yet. Idempotent; else RecordConflict."""
        with self._database.write() as connection:
            return deployments.create(connection, deployment)

    def put_deployment(
        self, deployment: Deployment, expect: Deployment | None = None
    ) -> Deployment:
        """Record it, or write its names, configuration and tags; state and group are untouched."""
        with self._database.write() as connection:
            return deployments.put(connection, deployment, expect)

    def get_deployment(self, id: str) -> Deployment:
        with self._database.read() as connection:
            return deployments.get(connection, id)

    def list_deployments(
        self, query: Query = FIRST, **filters: Unpack[deployments.DeploymentFilters]
    ) -> Page[Deployment]:
        with self._database.read() as connection:
            return deployments.list_(connection, query, **filters)

    def set_deployment_state(self, id: str, state: DeploymentState, reason: str = "") -> Deployment:
        """Raises IllegalMove: UPDATING is entered by one update at a time."""
        with self._database.write() as connection:
            return deployments.set_state(connection, id, state, reason)

    def commit_group(
        self, deployment_id: str, group_id: str, generation: int, work_request_id: str
    ) -> Deployment:
        """The durable switch: from its return on, a restart serves this group.

        The group before it is remembered, the deployment becomes ACTIVE, and member states of
        groups older than these two are forgotten. Asking again for the same is answered the same.
        Raises RecordConflict (the group is not ACTIVE, the generation does not grow, the work
        request is not in progress) or IllegalMove (the deployment is ACTIVE: it is not updating).
        """
        with self._database.write() as connection:
            return deployments.commit(
                connection, deployment_id, group_id, generation, work_request_id
            )

    def put_member_states(
        self, deployment_id: str, group_id: str, members: Sequence[DeployedMember]
    ) -> None:
        """Write how every member of a group fared, in the order of the group."""
        with self._database.write() as connection:
            deployments.put_members(connection, deployment_id, group_id, members)

    def list_member_states(
        self,
        deployment_id: str,
        query: Query = FIRST,
        **filters: Unpack[deployments.MemberFilters],
    ) -> Page[DeployedMember]:
        """Those of the committed group, unless the filter `group_id` names another."""
        with self._database.read() as connection:
            return deployments.list_members(connection, deployment_id, query, **filters)

    # -- work requests ----------------------------------------------------------------------

    def open_work_request(
        self, operation: str, resources: Sequence[Affected] = (), *, compartment_id: str = ""
    ) -> WorkRequest:
        """Record work that was accepted, under a new id."""
        request = WorkRequest(
            id=new_id(WORK_REQUEST),
            operation=operation,
            resources=tuple(resources),
            compartment_id=compartment_id,
        )
        with self._database.write() as connection:
            return work_requests.open_(connection, request)

    def advance(self, id: str, percent: float, message: str | None = None) -> WorkRequest:
        """Begin or go on; a lower percentage than before leaves it where it was.

        At most 99 is kept: 100 tells clients that all is done, which `succeed` says. Raises
        IllegalMove where the work is over.
        """
        with self._database.write() as connection:
            return work_requests.advance(connection, id, percent, message)

    def add_error(self, id: str, code: str, message: str, model_id: str | None = None) -> None:
        """One more reason, beside the one that `fail` is given."""
        with self._database.write() as connection:
            work_requests.error(connection, id, code, message, model_id)

    def fail(self, id: str, code: str, message: str, model_id: str | None = None) -> WorkRequest:
        """End the work without success; the percentage stays. Raises IllegalMove."""
        with self._database.write() as connection:
            work_requests.error(connection, id, code, message, model_id)
            return work_requests.finish(connection, id, WorkStatus.FAILED)

    def succeed(self, id: str, message: str | None = None) -> WorkRequest:
        """End the work, all of it done. Raises IllegalMove."""
        with self._database.write() as connection:
            return work_requests.finish(connection, id, WorkStatus.SUCCEEDED, message)

    def cancel(self, id: str) -> WorkRequest:
        """Ask for the end: CANCELED where nothing was begun, else CANCELING. Raises IllegalMove."""
        with self._database.write() as connection:
            return work_requests.cancel(connection, id)

    def canceled(self, id: str) -> WorkRequest:
        """The work has stopped as asked. Raises IllegalMove."""
        with self._database.write() as connection:
            return work_requests.finish(connection, id, WorkStatus.CANCELED)

    def get_work_request(self, id: str) -> WorkRequest:
        with self._database.read() as connection:
            return work_requests.get(connection, id)

    def list_work_requests(
        self, query: Query = FIRST, **filters: Unpack[work_requests.WorkFilters]
    ) -> Page[WorkRequest]:
        with self._database.read() as connection:
            return work_requests.list_(connection, query, **filters)

    def list_logs(self, id: str, query: Query = FIRST) -> Page[WorkLog]:
        """Oldest first, unless the query says otherwise."""
        with self._database.read() as connection:
            return work_requests.list_logs(connection, id, query)

    def list_errors(self, id: str, query: Query = FIRST) -> Page[WorkError]:
        """Oldest first, unless the query says otherwise."""
        with self._database.read() as connection:
            return work_requests.list_errors(connection, id, query)
