"""The durable records: one method, one transaction. What a method has returned survives a kill.

It must not know the engine, HTTP, or who may do what.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Unpack

from stacked.registry import deployments, recovery, retry_tokens, work_requests
from stacked.registry.catalogue import CatalogueRecords
from stacked.registry.database import Database
from stacked.registry.ids import WORK_REQUEST, new_id
from stacked.registry.paging import FIRST
from stacked.registry.records import (
    Affected,
    DeployedMember,
    Deployment,
    JsonObject,
    Page,
    Query,
    Recovered,
    WorkError,
    WorkLog,
    WorkRequest,
)
from stacked.registry.retry_tokens import Call, Kept, RetryToken
from stacked.registry.states import (
    DeploymentState,
    WorkStatus,
)


class Registry(CatalogueRecords):
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

    def update_deployment(
        self,
        id: str,
        expect: Deployment | None = None,
        **changes: Unpack[deployments.DeploymentChanges],
    ) -> Deployment:
        """Names, tags, compartment, and parts of the configuration; the engine hears of none.

        Raises RecordAbsent for one that is deleted.
        """
        with self._database.write() as connection:
            return deployments.update(connection, id, expect, changes)

    def set_deployment_state(
        self,
        id: str,
        state: DeploymentState,
        reason: str = "",
        expect: Deployment | None = None,
    ) -> Deployment:
        """Raises IllegalMove: UPDATING is entered by one update at a time."""
        with self._database.write() as connection:
            return deployments.set_state(connection, id, state, reason, expect)

    def commit_group(
        self,
        deployment_id: str,
        group_id: str,
        generation: int,
        work_request_id: str,
        *,
        configuration: JsonObject | None = None,
        inactive: bool = False,
    ) -> Deployment:
        """The durable switch: from its return on, a restart serves this group.

        The group before it is remembered, the deployment becomes ACTIVE, and member states of
        groups older than these two are forgotten. `configuration` are the parts of it that change
        with the group; an `inactive` deployment stays so. Asking again for the same is answered the
        same. Raises RecordConflict (the group is not ACTIVE, the generation does not grow, the work
        request is not in progress) or IllegalMove (the deployment is ACTIVE: it is not updating).
        """
        with self._database.write() as connection:
            return deployments.commit(
                connection,
                deployment_id,
                group_id,
                generation,
                work_request_id,
                configuration=configuration,
                inactive=inactive,
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

    # -- retry tokens -----------------------------------------------------------------------

    def begin_retry(self, token: RetryToken, payload: str, now: datetime) -> Call | None:
        """The first call with a token, or None: then it is this one, and noted durably.

        Calls of a day ago are forgotten, and so are the oldest of more than 10,000.
        """
        with self._database.write() as connection:
            return retry_tokens.begin(connection, token, payload, now)

    def finish_retry(self, token: RetryToken, payload: str, answer: Kept) -> None:
        """Keep what the first call was answered with."""
        with self._database.write() as connection:
            retry_tokens.finish(connection, token, payload, answer)

    def forget_retry(self, token: RetryToken) -> None:
        """The first call did nothing; the next one may."""
        with self._database.write() as connection:
            retry_tokens.forget(connection, token)
