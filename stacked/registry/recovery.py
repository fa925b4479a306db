"""What a process that was killed had left in progress is settled, so that no record waits for it.

It must not be run while another process may still be at work: hold the data directory's lock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from stacked.registry import work_requests as work
from stacked.registry.deployments import DEPLOYMENTS
from stacked.registry.groups import GROUPS
from stacked.registry.records import Recovered
from stacked.registry.repository import Rows
from stacked.registry.schema import deployments, work_requests
from stacked.registry.states import (
    UNFINISHED,
    DeploymentState,
    GroupState,
    HistoryState,
    WorkStatus,
)
from stacked.registry.versions import HISTORIES

# The code of the error that a work request is given; not one that is raised.
INTERRUPTED = "Interrupted"


# Deployments that a process has stopped by ending, whatever it still had to write down.
_STOPPED = {
    ("MODEL_DEPLOYMENT_DEACTIVATE", DeploymentState.UPDATING): DeploymentState.INACTIVE,
    ("MODEL_DEPLOYMENT_DELETE", DeploymentState.DELETING): DeploymentState.DELETED,
}
# Those that were on their way to serve, and did not before.
_IDLE = {("MODEL_DEPLOYMENT_ACTIVATE", DeploymentState.UPDATING): DeploymentState.INACTIVE}


def recover(connection: Connection) -> Recovered:
    """Fail what was in progress, with a reason. The committed group of a deployment stands.

    A work request whose group was committed had passed the point of no return: the next start
    serves that group and nothing drains any more, so it has succeeded. So has one that was to stop
    a deployment: nothing of it runs.
    """
    stopped, done, moved = _stopped(connection)
    succeeded, failed = _work_requests(connection, done)
    failed += moved + _deployments(connection)
    failed += _unfinished(connection, GROUPS, UNFINISHED[GroupState], GroupState.FAILED)
    failed += _unfinished(connection, HISTORIES, UNFINISHED[HistoryState], HistoryState.FAILED)
    return Recovered(failed=tuple(failed), succeeded=(*stopped, *succeeded))


def _stopped(connection: Connection) -> tuple[list[str], set[str], list[str]]:
    """Settle deployments by what was being done to them.

    Returns the deployments that are stopped as was asked, the work requests that asked for it, and
    the deployments whose activation was not finished.
    """
    stopped: list[str] = []
    done: set[str] = set()
    idle: list[str] = []
    for work_id, operation, id, before in _changing(connection):
        if (after := _STOPPED.get((operation, before))) is not None:
            DEPLOYMENTS.move(connection, id, after, reason="")
            stopped.append(id)
            done.add(work_id)
        elif (after := _IDLE.get((operation, before))) is not None:
            DEPLOYMENTS.move(connection, id, after, reason=_reason("being activated"))
            idle.append(id)
    return stopped, done, idle


def _changing(connection: Connection) -> list[tuple[str, str, str, DeploymentState]]:
    """Work that was under way on a deployment that waits for it: work, operation, deployment."""
    states = {
        row.id: row.state
        for row in connection.execute(
            select(deployments.c.id, deployments.c.state).where(
                deployments.c.state.in_(UNFINISHED[DeploymentState])
            )
        )
    }
    rows = connection.execute(
        select(work_requests.c.id, work_requests.c.operation, work_requests.c.resources).where(
            work_requests.c.status.in_(UNFINISHED[WorkStatus])
        )
    ).all()
    return [
        (row.id, row.operation, item.id, states[item.id])
        for row in rows
        for item in row.resources
        if item.id in states
    ]


def _work_requests(connection: Connection, done: set[str]) -> tuple[list[str], list[str]]:
    """Settle work requests; `done` are those whose end has come about by itself."""
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
        if past_commit or id in done:
            text = (
                "the server ended after the commit; its next start serves the committed group"
                if past_commit
                else "the server ended, and what it served with it"
            )
            # What is only accepted cannot succeed yet, as a table of moves has it.
            work.advance(connection, id, 0.0, None)
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
        DEPLOYMENTS.move(connection, id, DeploymentState.FAILED, reason=reason)
    return [row.id for row in rows]


def _unfinished(
    connection: Connection, rows: Rows[Any], states: Iterable[enum.Enum], after: enum.Enum
) -> list[str]:
    """Move what is in one of these states; its ids."""
    table = rows.table
    found = connection.execute(
        select(table.c.id, table.c.state).where(table.c.state.in_(states))
    ).all()
    for id, before in found:
        rows.move(connection, id, after, reason=_reason(before.value))
    return [row.id for row in found]


def _reason(before: str) -> str:
    return f"the server ended while this was {before}"
