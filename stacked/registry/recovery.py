"""Settles what a killed process had left in progress, so that no record waits for it.

Hold the data directory's lock: no other process may be at work.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from stacked.registry import work_requests as work
from stacked.registry.deployments import DEPLOYMENTS
from stacked.registry.groups import GROUPS
from stacked.registry.records import Recovered
from stacked.registry.repository import Rows
from stacked.registry.schema import deployments
from stacked.registry.states import (
    UNFINISHED,
    DeploymentState,
    GroupState,
    HistoryState,
    WorkStatus,
)
from stacked.registry.versions import HISTORIES

# The code of a work request's error; it is not raised.
INTERRUPTED = "Interrupted"

# What is done to a deployment, and its state meanwhile: what it is when the process ends. The first
# two are done by that; the last one is not, and the deployment did not serve before either.
_SETTLED: dict[tuple[str, DeploymentState | None], DeploymentState] = {
    ("MODEL_DEPLOYMENT_DEACTIVATE", DeploymentState.UPDATING): DeploymentState.INACTIVE,
    ("MODEL_DEPLOYMENT_DELETE", DeploymentState.DELETING): DeploymentState.DELETED,
    ("MODEL_DEPLOYMENT_ACTIVATE", DeploymentState.UPDATING): DeploymentState.INACTIVE,
}
_NOT_DONE = "MODEL_DEPLOYMENT_ACTIVATE"


def recover(connection: Connection) -> Recovered:
    """Fail what was in progress, with a reason. The committed group of a deployment stays.

    A work request whose group was committed had passed the point of no return: the next start
    serves that group and nothing drains any more, so it has succeeded. So has one that was to stop
    a deployment: nothing of it runs.
    """
    failed: list[str] = []
    succeeded: list[str] = []
    requests = _unfinished(connection, work.WORK, WorkStatus)
    done = _settle(connection, requests, succeeded, failed)
    _end(connection, requests, done, succeeded, failed)
    others: tuple[tuple[Rows[Any], Any], ...] = (
        (DEPLOYMENTS, DeploymentState),
        (GROUPS, GroupState),
        (HISTORIES, HistoryState),
    )
    for rows, states in others:
        for row in _unfinished(connection, rows, states):
            reason = _reason(row["state"])
            if rows is DEPLOYMENTS and row["group_id"] is None:
                reason += "; no group had been committed"
            elif rows is DEPLOYMENTS:
                group = f"group {row['group_id']} of generation {row['generation']}"
                reason += f"; {group} is still the committed one"
            rows.move(connection, row["id"], states.FAILED, reason=reason)
            failed.append(row["id"])
    return Recovered(failed=tuple(failed), succeeded=tuple(succeeded))


def _settle(
    connection: Connection, requests: Sequence[RowMapping], succeeded: list[str], failed: list[str]
) -> set[str]:
    """Settle deployments by what was being done to them; the work that is done by that."""
    unfinished = _unfinished(connection, DEPLOYMENTS, DeploymentState)
    states = {row["id"]: row["state"] for row in unfinished}
    done = set()
    for row in requests:
        for item in row["resources"]:
            after = _SETTLED.get((row["operation"], states.get(item.id)))
            if after is None:
                continue
            before = states.pop(item.id)  # once, whatever else names it
            undone = row["operation"] == _NOT_DONE
            reason = _reason(before) if undone else ""
            DEPLOYMENTS.move(connection, item.id, after, reason=reason)
            (failed if undone else succeeded).append(item.id)
            if not undone:
                done.add(row["id"])
    return done


def _end(
    connection: Connection,
    requests: Sequence[RowMapping],
    done: set[str],
    succeeded: list[str],
    failed: list[str],
) -> None:
    """End work requests: those that are done, those that are past their commit, and the rest."""
    committed = set(connection.execute(select(deployments.c.work_request_id)).scalars())
    texts = dict.fromkeys(done, "the server ended, and what it served with it")
    past = "the server ended after the commit; its next start serves the committed group"
    texts |= dict.fromkeys(committed, past)
    for row in requests:
        id = row["id"]
        if id in texts:
            # The table of moves does not let accepted work succeed directly.
            work.advance(connection, id, 0.0)
            work.finish(connection, id, WorkStatus.SUCCEEDED, texts[id])
            succeeded.append(id)
        else:
            reason = _reason(row["status"])
            work.error(connection, id, INTERRUPTED, reason, None)
            work.finish(connection, id, WorkStatus.FAILED, reason)
            failed.append(id)


def _unfinished(
    connection: Connection, rows: Rows[Any], kind: type[enum.Enum]
) -> Sequence[RowMapping]:
    """The rows in a state that only exists while a process works on them."""
    wanted = select(rows.table).where(rows.state.in_(UNFINISHED[kind]))
    return connection.execute(wanted).mappings().all()


def _reason(before: enum.Enum) -> str:
    return f"the server ended while this was {before.value}"
