"""The states of every kind of record, named as OCI names them, and the moves between them."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from stacked.errors import IllegalMove


class ModelState(enum.Enum):
    ACTIVE = "ACTIVE"  # may be a member of a new group
    INACTIVE = "INACTIVE"  # stored, and switched off by a person
    FAILED = "FAILED"  # its content is gone or wrong; see the reason
    DELETED = "DELETED"  # only this record is left


class GroupState(enum.Enum):
    CREATING = "CREATING"  # recorded; what it needs is still being made
    ACTIVE = "ACTIVE"  # may be deployed
    INACTIVE = "INACTIVE"  # stored, and switched off by a person
    FAILED = "FAILED"  # could not be made, or not be deleted
    DELETING = "DELETING"  # being taken apart
    DELETED = "DELETED"  # only this record is left


class HistoryState(enum.Enum):
    ACTIVE = "ACTIVE"  # takes new versions
    FAILED = "FAILED"  # could not be deleted
    DELETING = "DELETING"  # being taken apart
    DELETED = "DELETED"  # only this record is left; its name is free again


class DeploymentState(enum.Enum):
    CREATING = "CREATING"  # no group has been committed yet
    ACTIVE = "ACTIVE"  # the committed group is what is served
    UPDATING = "UPDATING"  # another group is on its way; the committed one serves
    NEEDS_ATTENTION = "NEEDS_ATTENTION"  # serves, but not as recorded; see the reason
    INACTIVE = "INACTIVE"  # switched off by a person
    DELETING = "DELETING"  # being stopped for good
    DELETED = "DELETED"  # only this record is left
    FAILED = "FAILED"  # does not serve; a restart may bring the committed group back


class WorkStatus(enum.Enum):
    ACCEPTED = "ACCEPTED"  # recorded; nothing has been done
    IN_PROGRESS = "IN_PROGRESS"  # somebody works on it
    SUCCEEDED = "SUCCEEDED"  # all of it was done
    FAILED = "FAILED"  # none of it counts; the errors say why
    CANCELING = "CANCELING"  # cancellation requested; may still succeed or fail
    CANCELED = "CANCELED"  # stopped, none of it counts


class MemberState(enum.Enum):
    SUCCESS = "SUCCESS"  # loaded and verified
    FAILED = "FAILED"  # refused; see the reason
    INCONSISTENT = "INCONSISTENT"  # replicas disagree about it


def _table(text: str, kind: type[enum.Enum]) -> dict[enum.Enum, frozenset[enum.Enum]]:
    """Lines of `BEFORE: AFTER AFTER …`; a state without a line is final."""
    moves = dict.fromkeys(kind, frozenset[enum.Enum]())
    for line in text.strip().splitlines():
        before, after = line.split(":")
        moves[kind[before.strip()]] = frozenset(kind[word] for word in after.split())
    return moves


MOVES: Mapping[enum.Enum, frozenset[enum.Enum]] = {
    **_table(
        """
        ACTIVE: INACTIVE FAILED DELETED
        INACTIVE: ACTIVE FAILED DELETED
        FAILED: ACTIVE DELETED
        DELETED: ACTIVE
        """,  # a model's id stands for its content: the same content may come back
        ModelState,
    ),
    **_table(
        """
        CREATING: ACTIVE FAILED
        ACTIVE: INACTIVE DELETING
        INACTIVE: ACTIVE DELETING
        FAILED: DELETING
        DELETING: DELETED FAILED
        DELETED: ACTIVE
        """,  # as a model's, where the id follows from the content
        GroupState,
    ),
    **_table(
        """
        ACTIVE: DELETING
        FAILED: DELETING
        DELETING: DELETED FAILED
        """,
        HistoryState,
    ),
    **_table(
        """
        CREATING: ACTIVE FAILED DELETING
        ACTIVE: UPDATING NEEDS_ATTENTION INACTIVE FAILED DELETING
        UPDATING: ACTIVE NEEDS_ATTENTION INACTIVE FAILED
        NEEDS_ATTENTION: ACTIVE UPDATING INACTIVE FAILED DELETING
        INACTIVE: ACTIVE UPDATING FAILED DELETING
        FAILED: ACTIVE UPDATING INACTIVE DELETING
        DELETING: DELETED FAILED
        """,
        DeploymentState,
    ),
    **_table(
        """
        ACCEPTED: IN_PROGRESS FAILED CANCELED
        IN_PROGRESS: SUCCEEDED FAILED CANCELING
        CANCELING: SUCCEEDED FAILED CANCELED
        """,
        WorkStatus,
    ),
}

# States that only exist while a process works on the record.
UNFINISHED: Mapping[type[enum.Enum], tuple[enum.Enum, ...]] = {
    GroupState: (GroupState.CREATING, GroupState.DELETING),
    HistoryState: (HistoryState.DELETING,),
    DeploymentState: (
        DeploymentState.CREATING,
        DeploymentState.UPDATING,
        DeploymentState.DELETING,
    ),
    WorkStatus: (WorkStatus.ACCEPTED, WorkStatus.IN_PROGRESS, WorkStatus.CANCELING),
}


def check_move(what: str, before: enum.Enum, after: enum.Enum) -> None:
    """Raise IllegalMove if `after` may not follow `before`; staying is no move."""
    allowed = MOVES[before]
    if after not in allowed:
        follow = ", ".join(sorted(str(state.value) for state in allowed)) or "nothing"
        raise IllegalMove(
            f"{what} is {before.value} and cannot become {after.value}; what may follow: {follow}"
        )
