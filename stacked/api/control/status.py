"""Stacked's own routes: status, comparison of engine settings, garbage collection."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AliasPath, Field, WithJsonSchema

from stacked.api.control.base import Json, Moment, RequestModel, ResponseModel
from stacked.api.control.calls import CHANGE, Served, bare
from stacked.config import Duration
from stacked.core import Adapter, Member
from stacked.engine.engine import Resident
from stacked.errors import UpdateNotLive
from stacked.live import Live
from stacked.log_files import LogFiles
from stacked.registry.states import DeploymentState, MemberState
from stacked.registry.usage import hour_of

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


class Status(ResponseModel):
    deployment_id: str
    group_id: str | None
    group_name: str | None
    generation: int
    previous_group_id: str | None
    state: DeploymentState
    reason: str
    update: str | None
    draining: list[str]
    disk: DiskStatus
    logs: LogPaths | None
    models: list[MemberStatus]


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
    """What `stacked status` shows. The engine reports where weights are."""
    active, registry = service.active, service.registry
    live, resident = active.serving.live, await active.serving.resident()
    deployment = await asyncio.to_thread(registry.deployments.get, active.deployment_id)
    group_id, change = deployment.group_id, service.deployments.running
    group = await asyncio.to_thread(registry.groups.get, group_id) if group_id else None
    disk = await asyncio.to_thread(service.rounds.disk)
    return Status(
        deployment_id=deployment.id,
        group_id=group_id,
        group_name=group.display_name if group else None,
        generation=live.routing.generation,
        previous_group_id=deployment.previous_group_id,
        state=deployment.state,
        reason=deployment.reason,
        update=change.work_id if change else None,
        draining=sorted(live.routing.draining),
        disk=DiskStatus(
            free_bytes=disk.free,
            total_bytes=disk.total,
            stored_bytes=sum(disk.stored.values()),
            low=disk.low,
        ),
        logs=_log_paths(service.log_files),
        models=[
            *(_member(member, live, resident) for member in live.routing.members),
            *(_quarantined(member, why) for member, why in live.quarantined.items()),
        ],
    )


def _log_paths(files: LogFiles | None) -> LogPaths | None:
    paths = files.paths if files is not None else {}
    return LogPaths(**{name: str(path) for name, path in paths.items()}) if paths else None


def _member(member: Member, live: Live[Any], resident: Resident) -> MemberStatus:
    handle = live.routing.handles[member.content.digest]
    return _shown(
        member,
        MemberState.SUCCESS,
        leases=live.leases.held(handle),
        resident=handle.number in resident.host,
        on_device=handle.number in resident.slots,
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
