"""Stacked's own routes: status, comparison of engine settings, garbage collection."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AliasPath, Field, WithJsonSchema

from stacked.api.control.base import Json, Moment, RequestModel, ResponseModel
from stacked.api.control.calls import CHANGE, Served, bare
from stacked.config import Duration, UnitKind
from stacked.core import Adapter, Member
from stacked.deployment.activation import EngineState
from stacked.deployment.gates import Judged
from stacked.deployment.members import Differing
from stacked.engine.loaded import Resident
from stacked.errors import UpdateNotLive
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.log_files import LogFiles
from stacked.registry.states import DeploymentState, MemberState
from stacked.registry.usage import hour_of
from stacked.retention.rounds import Rounds
from stacked.service import State

router = APIRouter(
    prefix="/stacked",
    tags=["Stacked"],
    generate_unique_id_function=lambda route: route.name,
)


class EngineSettings(RequestModel):
    """`engine`: the settings of a file; None if it has none."""

    engine: Json | None = None


class MemberStatus(ResponseModel):
    """A model of the group: its requests in flight, and where its weights are."""

    model_id: str
    inference_key: str | None
    digest: str
    rank: int | None
    state: MemberState
    reason: str
    leases: int = 0
    resident: bool = False
    on_device: bool = False


class DiskStatus(ResponseModel):
    """The disk of the data directory; `stored_bytes`: used by adapters and bases."""

    free_bytes: int
    total_bytes: int
    stored_bytes: int
    low: bool


class LogPaths(ResponseModel):
    """The files of this server that lines go to; `predict`: the deployment's own, if it has one."""

    engine: str
    access: str
    predict: str | None = None


class EngineStatus(ResponseModel):
    """`state`: none, starting, serving, restarting or failed; `reason`: why it does not serve.

    `next_start`: when another engine is started in place of one that died.
    """

    state: str
    reason: str
    next_start: Moment | None


class ArmStatus(ResponseModel):
    """`share`: of the units, 0 where it is not served; `digest`: null for the base."""

    key: str
    share: float
    digest: str | None


class ExperimentStatus(ResponseModel):
    """A key with arms; `phase`: null where no arm is served."""

    key: str
    unit: UnitKind
    phase: str | None
    arms: list[ArmStatus]


class GateStatus(ResponseModel):
    """What a gate of the last LIVE update with gates says of the adapter that came to a key.

    `score`, `served`: the mean scores of the adapter, and of what it was compared with. `reasons`:
    why it was refused; empty if it passed.
    """

    gate: str
    inference_key: str
    digest: str
    examples: int
    score: float
    served: float | None
    reasons: list[str]


class Status(ResponseModel):
    """Of the deployment that is served, comes back or is starting; null where there is none."""

    engine: EngineStatus
    deployment_id: str | None
    group_id: str | None
    group_name: str | None
    generation: int | None
    previous_group_id: str | None
    state: DeploymentState | None
    reason: str
    update: str | None
    draining: list[str]
    disk: DiskStatus | None
    logs: LogPaths | None
    models: list[MemberStatus]
    experiments: list[ExperimentStatus]
    gates: list[GateStatus]


# A file's form of a duration, which the document cannot know from the type.
_Since = Annotated[Duration, WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,3}[smhd]$"})]


class UsageQuery(RequestModel):
    since: _Since = Field(
        timedelta(days=7),
        le=timedelta(days=999),
        description="How far back, to the hour: `90m`, `24h` or `30d`",
    )
    by: Literal["credential", "key"] | None = Field(
        None, description="Sum over all keys of each credential, or all credentials of each key"
    )


class UsageLine(ResponseModel):
    """`credential`, `key`: null for the sum over all of them; a key is empty where none was found.

    `errors` are requests that were refused or failed.
    """

    credential: str | None
    key: str | None
    requests: int = Field(validation_alias=AliasPath("counts", "requests"))
    errors: int = Field(validation_alias=AliasPath("counts", "errors"))
    prompt_tokens: int = Field(validation_alias=AliasPath("counts", "prompt_tokens"))
    generated_tokens: int = Field(validation_alias=AliasPath("counts", "generated_tokens"))


class UsageReport(ResponseModel):
    """`since`: the hour of the oldest counts in it."""

    since: Moment
    items: list[UsageLine]


class CollectLine(ResponseModel):
    """How much of a kind was removed (`freed`) or stays, and why."""

    kind: str
    reason: str
    freed: bool
    count: int
    bytes: int


class CollectReport(ResponseModel):
    """`unfinished`: there is more to remove, which the next round does."""

    dry_run: bool
    unfinished: bool
    freed_bytes: int
    lines: list[CollectLine]
    notes: list[str]


@router.get("/status")
async def status(service: Served) -> Status:
    """What `stacked status` shows, also while no engine serves.

    The engine reports where weights are.
    """
    id, change = service.deployment_id, service.change
    deployment = await asyncio.to_thread(service.registry.deployments.get, id) if id else None
    group_id = deployment.group_id if deployment else None
    group = await asyncio.to_thread(service.registry.groups.get, group_id) if group_id else None
    resident = await service.resident()
    live = service.occupant.serving.live if service.occupant else None
    fleet = service.fleet
    differing = await asyncio.to_thread(fleet.differing) if fleet is not None else {}
    return Status(
        engine=_engine(service.engine),
        deployment_id=deployment.id if deployment else None,
        group_id=group_id,
        group_name=group.display_name if group else None,
        generation=live.routing.generation if live else None,
        previous_group_id=deployment.previous_group_id if deployment else None,
        state=deployment.state if deployment else None,
        reason=deployment.reason if deployment else "",
        update=change.work_id if change else None,
        draining=sorted(live.routing.draining) if live else [],
        disk=await asyncio.to_thread(_disk, service.rounds)
        if service.state is State.SERVING
        else None,
        logs=_log_paths(service.log_files),
        models=_models(live, resident, differing) if live else [],
        experiments=_experiments(live.routing) if live else [],
        gates=[_gate(each) for each in service.gates],
    )


def _gate(judged: Judged) -> GateStatus:
    verdict = judged.verdict
    return GateStatus(
        gate=judged.gate,
        inference_key=judged.key,
        digest=judged.digest,
        examples=judged.examples,
        score=verdict.score.mean,
        served=verdict.served.mean if verdict.served else None,
        reasons=list(verdict.reasons),
    )


def _engine(now: EngineState) -> EngineStatus:
    ahead = now.start_at - time.monotonic() if now.start_at is not None else 0.0
    next_start = datetime.now(UTC) + timedelta(seconds=ahead) if ahead > 0 else None
    return EngineStatus(state=now.state, reason=now.reason, next_start=next_start)


def _disk(rounds: Rounds) -> DiskStatus:
    disk = rounds.disk()
    stored = sum(disk.stored.values())
    return DiskStatus(
        free_bytes=disk.free, total_bytes=disk.total, stored_bytes=stored, low=disk.low
    )


def _log_paths(files: LogFiles | None) -> LogPaths | None:
    paths = files.paths if files is not None else {}
    return LogPaths(**{name: str(path) for name, path in paths.items()}) if paths else None


def _experiments(routing: Routing[Any]) -> list[ExperimentStatus]:
    found = []
    for one in routing.design.experiments:
        served = routing.arms.get(one.key)
        shares = served.split.shares if served else {}
        routes = served.routes if served else {}
        arms = [
            ArmStatus(
                key=arm.key,
                share=shares.get(arm.key, 0.0),
                digest=routes[arm.key].digest if arm.key in routes else None,
            )
            for arm in one.arms
        ]
        phase = served.split.phase if served else None
        found.append(ExperimentStatus(key=one.key, unit=one.unit, phase=phase, arms=arms))
    return found


def _models(live: Live[Any], resident: Resident | None, differing: Differing) -> list[MemberStatus]:
    """In a fleet with the states of all replicas, where they differ."""
    shown = [
        *(_member(member, live, resident) for member in live.routing.members),
        *(_quarantined(member, why) for member, why in live.quarantined.items()),
    ]
    states = {id: {"state": state, "reason": why} for id, (state, why) in differing.items()}
    return [each.model_copy(update=states.get(each.model_id)) for each in shown]


def _member(member: Member, live: Live[Any], resident: Resident | None) -> MemberStatus:
    handle = live.routing.handles[member.content.digest]
    return _shown(
        member,
        MemberState.SUCCESS,
        leases=live.leases.held(handle),
        resident=resident is not None and handle.number in resident.host,
        on_device=resident is not None and handle.number in resident.slots,
    )


def _quarantined(member: Member, why: str) -> MemberStatus:
    return _shown(member, MemberState.FAILED, reason=why)


def _shown(member: Member, state: MemberState, reason: str = "", **held: Any) -> MemberStatus:
    return MemberStatus(
        model_id=member.model_id,
        inference_key=member.key,
        digest=member.content.digest,
        rank=member.content.rank if isinstance(member.content, Adapter) else None,
        state=state,
        reason=reason,
        **held,
    )


@router.post("/check", **bare(204))
def check_settings(body: EngineSettings, service: Served) -> Response:
    """Whether engine settings equal those in use, without revealing them."""
    if body.engine is not None:
        held = service.registry.deployments.get(service.active.deployment_id).configuration
        in_use, absent = held.get("engine", {}), object()
        names = sorted(
            name
            for name in body.engine.keys() | in_use.keys()
            if body.engine.get(name, absent) != in_use.get(name, absent)
        )
        if names:
            raise UpdateNotLive(
                f"engine settings differ ({', '.join(names)}); that needs a restart"
            )
    return Response(status_code=204)


@router.post("/collect", response_model=CollectReport, dependencies=CHANGE)
async def collect(service: Served, dry_run: Annotated[bool, Query(alias="dryRun")] = False) -> Any:
    """Remove what is no longer needed, as the server also does on its own."""
    return (await service.rounds.run(dry_run=dry_run)).to_json()


@router.get("/usage")
async def usage(service: Served, query: Annotated[UsageQuery, Query()]) -> UsageReport:
    """Requests and tokens by credential and inference key, the most requests first."""
    await service.usage.flush()
    since = hour_of(datetime.now(UTC) - query.since)
    found = await asyncio.to_thread(service.registry.usage.totals, since, query.by)
    return UsageReport(since=since, items=[UsageLine.of(each) for each in found])
