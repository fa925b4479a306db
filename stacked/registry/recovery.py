"""What a process that was killed had left in progress is settled, so that no record waits for it.

It must not be run while another process may still be at work: hold the data directory's lock.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from stacked.registry import work_requests as work
from stacked.registry.records import Recovered
from stacked.registry.rows import move
from stacked.registry.schema import deployments, groups, histories, work_requests
from stacked.registry.states import (
    UNFINISHED,
    DeploymentState,
    GroupState,
    HistoryState,
    WorkStatus,
)

# The code of the error that a work request is given; not one that is raised.
INTERRUPTED = "Interrupted"


def recover(connection: Connection) -> Recovered:
    """Fail what was in progress, with a reason. The committed group of a deployment stands.

    A work request whose group was committed had passed the point of no return: the next start
    serves that group and nothing drains any more, so it has succeeded.
    """
    succeeded, failed = _work_requests(connection)
    failed += _deployments(connection)
    for table, kind, state in (
        (groups, GroupState, GroupState.FAILED),
        (histories, HistoryState, HistoryState.FAILED),
    ):
        rows = connection.execute(
            select(table.c.id, table.c.state).where(table.c.state.in_(UNFINISHED[kind]))
        ).all()
        for id, before in rows:
            move(connection, table, id, state, reason=_reason(before.value))
        failed += [row.id for row in rows]
    return Recovered(failed=tuple(failed), succeeded=tuple(succeeded))


def _work_requests(connection: Connection) -> tuple[list[str], list[str]]:
    committed = select(deployments.c.work_request_id).where(
        deployments.c.work_request_id.is_not(None)
    )
    rows = connection.execute(
        select(
            work_requests.c.id,
            work_requests.c.status,
            work_requests.c.id.in_(committed).label("committed"),
        ).where(work_requests.c.status.in_(UNFINISHED[WorkStatus]))
    ).all()
    succeeded, failed = [], []
    for id, before, past_commit in rows:
        if past_commit:
            text = "the server ended after the commit; its next start serves the committed group"
            work.finish(connection, id, WorkStatus.SUCCEEDED, text)
            succeeded.append(id)
        else:
            reason = _reason(before.value)
            work.error(connection, id, INTERRUPTED, reason, None)
            work.finish(connection, id, WorkStatus.FAILED, reason)
            failed.append(id)
    return succeeded, failed


def _deployments(connection: Connection) -> list[str]:
    rows = connection.execute(
        select(
            deployments.c.id,
            deployments.c.state,
            deployments.c.group_id,
            deployments.c.generation,
        ).where(deployments.c.state.in_(UNFINISHED[DeploymentState]))
    ).all()
    for id, before, group_id, generation in rows:
        stands = (
            "no group had been committed"
            if group_id is None
            else f"group {group_id} of generation {generation} is still the committed one"
        )
        reason = f"{_reason(before.value)}; {stands}"
        move(connection, deployments, id, DeploymentState.FAILED, reason=reason)
    return [row.id for row in rows]


def _reason(before: str) -> str:
    return f"the server ended while this was {before}"
