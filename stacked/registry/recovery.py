"""Settles what a killed process had left in progress, so that no record waits for it.

Other processes may be at work, if all of them have claimed the records.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
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


def recover(
    connection: Connection,
    running: Collection[int],
    spared: Collection[str],
    committed: Collection[str],
    *,
    alone: bool,
) -> Recovered:
    """Fail what was in progress, with a reason. The committed group of a deployment stays.

    A work request whose group was committed had passed the point of no return: the next start
    serves that group, or a later one, and nothing drains any more, so it has succeeded. So has one
    that was to stop a deployment: nothing of it runs. `committed`: those that a fleet has.

    The work of processes that are `running` stays, as does what is `spared`, and what either acts
    on. While this process is not `alone`, so does all but work requests and what those act on.
    """
    failed: list[str] = []
    succeeded: list[str] = []
    requests: list[RowMapping] = []
    busy: set[str] = set()
    for row in _unfinished(connection, work.WORK, WorkStatus):
        if row["process"] in running or row["id"] in spared:
            busy |= {item.id for item in row["resources"]}
        else:
            requests.append(row)
    left = {item.id for row in requests for item in row["resources"]} - busy

    def mine(row: RowMapping) -> bool:
        return row["id"] not in busy if alone else row["id"] in left

    stopped = filter(mine, _unfinished(connection, DEPLOYMENTS, DeploymentState))
    done = _settle(
        connection, requests, {row["id"]: row["state"] for row in stopped}, succeeded, failed
    )
    past = {*committed, *connection.execute(select(deployments.c.work_request_id)).scalars()}
    _end(connection, requests, done, past, succeeded, failed)
    kinds: tuple[tuple[Rows[Any], Any], ...] = (
        (DEPLOYMENTS, DeploymentState),
        (GROUPS, GroupState),
        (HISTORIES, HistoryState),
    )
    for rows, states in kinds:
        for row in filter(mine, _unfinished(connection, rows, states)):
            reason, after = _reason(row["state"]), states.FAILED
            if rows is DEPLOYMENTS and row["group_id"] is None:
                reason += "; no group had been committed"
            elif rows is DEPLOYMENTS:
                group = f"group {row['group_id']} of generation {row['generation']}"
                reason += f"; {group} is still the committed one"
                after = after if alone else states.ACTIVE  # which they serve
            rows.move(connection, row["id"], after, reason=reason)
            failed.append(row["id"])
    return Recovered(failed=tuple(failed), succeeded=tuple(succeeded))


def at_work(connection: Connection) -> frozenset[int]:
    """The numbers of the processes whose work has not ended."""
    return frozenset(row["process"] for row in _unfinished(connection, work.WORK, WorkStatus))


def _settle(
    connection: Connection,
    requests: Sequence[RowMapping],
    states: dict[str, DeploymentState],
    succeeded: list[str],
    failed: list[str],
) -> set[str]:
    """Settle deployments by what was being done to them; the work that is done by that.

    `states` are of those that are unfinished, by id.
    """
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
    committed: set[str],
    succeeded: list[str],
    failed: list[str],
) -> None:
    """End work requests: those that are done, those that are past their commit, and the rest."""
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
