"""What the replicas of a fleet have in common, and the operations on it.

Each operation is one transaction. One that does not fit what is there changes nothing, so that any
of them may be lost, repeated, or carried out late.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Mode(enum.Enum):
    """What clients of the replicas may rely on at an update."""

    GLOBAL = "global"
    """No request is admitted to a generation after any was admitted to a newer one, anywhere."""
    SESSION = "session"
    """The same for each client that sends back the `model-generation` of its last answer."""


class Stage(enum.Enum):
    """How far the newest update is."""

    PREPARING = "PREPARING"  # replicas load and verify the new group
    PREPARED = "PREPARED"  # all of them have it; they stop admitting requests
    COMMITTED = "COMMITTED"
    ABORTED = "ABORTED"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The one row: which group is committed, and the newest update."""

    mode: Mode
    generation: int
    """The number of the update that was committed last."""
    group: str
    fence: int
    """The number of the newest update. Each has a higher one than all before it."""
    stage: Stage = Stage.COMMITTED
    target: str = ""
    """The group that the newest update is to bring."""
    proposal: str = ""
    coordinator: str = ""
    reason: str = ""
    """Why it was aborted."""

    @property
    def at_rest(self) -> bool:
        """Whether no update is under way."""
        return self.stage in (Stage.COMMITTED, Stage.ABORTED)


@dataclass(frozen=True, slots=True)
class Report:
    """What a member of the fleet has said of itself last."""

    id: str
    """Of one stay in the fleet; a replica that returns gets another."""
    name: str
    beat: int
    """Counts its reports: while it does not grow, nothing is heard of the member."""
    generation: int
    ready: int = 0
    """The update that it has loaded and verified."""
    held: int = 0
    """The update for which it admits no requests."""
    refused: int = 0
    """The update that it cannot serve, for this reason."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """Everything that is stored of one fleet."""

    fleet: Fleet | None = None
    members: Mapping[str, Report] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """Change nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """Begin a fleet where there is none."""

    fleet: Fleet


@dataclass(frozen=True, slots=True)
class Join:
    """Become a member with the committed generation loaded, while no update is under way."""

    report: Report


@dataclass(frozen=True, slots=True)
class Beat:
    """Renew the lease, and report."""

    report: Report


@dataclass(frozen=True, slots=True)
class Leave:
    """Be a member no longer: nothing is admitted there any more."""

    id: str


@dataclass(frozen=True, slots=True)
class Propose:
    """Begin an update, as its coordinator, if none followed the update `fence`."""

    id: str
    proposal: str
    target: str
    fence: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Take the update to its next stage if every member is ready for that."""

    fence: int


@dataclass(frozen=True, slots=True)
class Abort:
    """End the update for this reason, unless it is committed."""

    fence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Exclude a member of which nothing was heard since this beat: its lease is over."""

    id: str
    beat: int


Operation = Look | Found | Join | Beat | Leave | Propose | Advance | Abort | Evict


class View(NamedTuple):
    """What a replica gets to see after its operation."""

    fleet: Fleet | None
    mine: Report | None
    """What is stored of it; None if it is no member."""
    lead: int | None
    """The coordinator's beat; None if that is no member."""
    members: tuple[Report, ...]
    """All of them, for the coordinator of an update that is under way."""

    @classmethod
    def of(cls, shared: Shared, id: str) -> View:
        """What the replica with this id sees."""
        fleet, members = shared.fleet, shared.members
        lead = members.get(fleet.coordinator) if fleet else None
        leads = fleet is not None and not fleet.at_rest and fleet.coordinator == id
        every = tuple(members.values()) if leads else ()
        return cls(fleet, members.get(id), lead.beat if lead else None, every)


def apply(shared: Shared, operation: Operation) -> Shared:
    """What is stored after an operation; the same object if it does not fit."""
    fleet, members = shared.fleet, shared.members
    if fleet is None:
        return replace(shared, fleet=operation.fleet) if isinstance(operation, Found) else shared
    after: Fleet | None = None
    match operation:
        case Join(report):
            if _joins(fleet, members.get(report.id), report):
                return replace(shared, members={**members, report.id: report})
        case Beat(report):
            if renews(members.get(report.id), report):
                return replace(shared, members={**members, report.id: report})
        case Leave(id):
            return _without(shared, id)
        case Evict(id, beat):
            if id in members and members[id].beat == beat:
                return _without(shared, id)
        case Propose(id, proposal, target, fence):
            if fleet.at_rest and fence == fleet.fence and id in members:
                after = _proposed(fleet, id, proposal, target)
        case Advance(fence):
            if fence == fleet.fence and fleet.coordinator in members:
                after = _advanced(fleet, members)
        case Abort(fence, reason):
            if fence == fleet.fence and not fleet.at_rest:
                after = replace(fleet, stage=Stage.ABORTED, target="", reason=reason)
    return shared if after is None else replace(shared, fleet=after)


def renews(stored: Report | None, report: Report) -> bool:
    """Whether a report is newer than what is stored of a member. One that is no member has none."""
    return stored is not None and stored.beat < report.beat


def _joins(fleet: Fleet, stored: Report | None, report: Report) -> bool:
    if stored is not None:  # the first answer was lost
        return renews(stored, report)
    return fleet.at_rest and report.generation == fleet.generation


def _without(shared: Shared, id: str) -> Shared:
    return replace(shared, members={k: v for k, v in shared.members.items() if k != id})


def _proposed(fleet: Fleet, id: str, proposal: str, target: str) -> Fleet:
    return replace(
        fleet,
        fence=fleet.fence + 1,
        stage=Stage.PREPARING,
        target=target,
        proposal=proposal,
        coordinator=id,
        reason="",
    )


def _advanced(fleet: Fleet, members: Mapping[str, Report]) -> Fleet | None:
    """The next stage; None if a member is not ready for it. Without a hold there is no PREPARED."""
    ready = all(each.ready == fleet.fence for each in members.values())
    held = all(each.held == fleet.fence for each in members.values())
    if fleet.stage is Stage.PREPARING and ready and fleet.mode is Mode.GLOBAL:
        return replace(fleet, stage=Stage.PREPARED)
    if (fleet.stage is Stage.PREPARED and held) or (fleet.stage is Stage.PREPARING and ready):
        return replace(
            fleet,
            stage=Stage.COMMITTED,
            generation=fleet.fence,
            group=fleet.target,
            target="",
        )
    return None
