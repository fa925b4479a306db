"""The servers that serve the same as this one: Stacked's own route, for administrators."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

from fastapi import APIRouter

from stacked.api.control.base import ResponseModel
from stacked.api.control.calls import Served
from stacked.errors import NotAuthorizedOrNotFound, NotReady
from stacked.fleet.shared import Fleet, Mode, Report, Stage
from stacked.registry.fleets import Seen

router = APIRouter(
    prefix="/stacked",
    tags=["Stacked"],
    generate_unique_id_function=lambda route: route.name,
)

Gate = Literal["open", "loading", "ready", "held", "refused"]


class FleetUpdate(ResponseModel):
    """The newest update. `group_id`: what it brings, until it ends. `coordinator`: the replica at
    which it began. `reason`: why it was given up.
    """

    number: int
    stage: Stage
    group_id: str | None
    work_request_id: str
    coordinator: str
    reason: str


class FleetMember(ResponseModel):
    """What a replica has reported last, `silent_seconds` ago. `gate`: `open`; while an update is
    under way `loading`, `ready`, or `held`, which its requests are; `refused`, for this reason.
    `lacking`: the models of the committed group that it does not serve, and why.
    """

    name: str
    id: str
    generation: int
    gate: Gate
    reason: str
    silent_seconds: float
    lacking: Mapping[str, str]


class FleetStatus(ResponseModel):
    """`replica`: the one that answers. `generation`, `group_id`: what is committed."""

    replica: str
    mode: Mode
    generation: int
    group_id: str
    update: FleetUpdate | None
    members: list[FleetMember]


@router.get("/fleet")
async def fleet(service: Served) -> FleetStatus:
    """What `stacked fleet status` shows: what all replicas serve, and each of them."""
    store, config = service.ledger.fleet, service.config.fleet
    if store is None or config is None:
        raise NotAuthorizedOrNotFound("this server serves alone, in no fleet")
    seen = await asyncio.to_thread(store.seen)
    found = seen.shared.fleet
    if found is None:
        raise NotReady("no replica of this fleet has come up yet")
    members = [_member(each, found, seen) for each in seen.shared.members.values()]
    return FleetStatus(
        replica=config.replica_name,
        mode=found.mode,
        generation=found.generation,
        group_id=found.group,
        update=_update(found, {each.id: each.name for each in members}),
        members=sorted(members, key=lambda each: (each.name, each.id)),
    )


def _update(fleet: Fleet, names: Mapping[str, str]) -> FleetUpdate | None:
    if not fleet.proposal:
        return None
    return FleetUpdate(
        number=fleet.fence,
        stage=fleet.stage,
        group_id=fleet.target or None,
        work_request_id=fleet.proposal,
        coordinator=names.get(fleet.coordinator, fleet.coordinator),
        reason=fleet.reason,
    )


def _member(report: Report, fleet: Fleet, seen: Seen) -> FleetMember:
    refused = report.refused == fleet.fence
    return FleetMember(
        name=report.name,
        id=report.id,
        generation=report.generation,
        gate=_gate(report, fleet),
        reason=report.reason if refused else "",
        silent_seconds=round(seen.ago[report.id], 1),
        lacking=seen.lacking[report.id],
    )


def _gate(report: Report, fleet: Fleet) -> Gate:
    """What it has said of the newest update, while that is under way or has been refused."""
    now = fleet.fence
    if report.refused == now:
        return "refused"
    if fleet.at_rest:
        return "open"
    return "held" if report.held == now else "ready" if report.ready == now else "loading"
