"""LIVE updates as a client makes them: register, create groups, switch, and see when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from stacked.client import Client, Entry
from stacked.config import MemberConfig
from stacked.errors import UpdateFailed
from stacked.steps import Phase

_LONGEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Update:
    """One update that succeeded: when it was requested, switched and over, on the monotonic clock.

    `switched` is when the switch was acknowledged. The seconds of its phases are the server's.
    """

    generation: int
    requested: float
    switched: float
    ended: float
    phases: Mapping[str, float]
    begins: Mapping[str, float] = field(default_factory=dict)
    """When each phase began, in seconds since the epoch, as the server reports."""


@dataclass(slots=True)
class Updater:
    """The updates of one server."""

    client: Client
    poll_seconds: float = 0.01
    """Polling costs the server time: do so rarely where time itself is measured."""
    generation: int = 0
    _deployment: str = ""
    _base: Entry | None = None
    _adapters: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        status = self.client.status()
        self.generation, self._deployment = status["generation"], status["deploymentId"]
        group = self.client.group(status["groupId"])
        base = group["modelGroupDetails"]["baseModelId"]
        listed = group["memberModelEntries"]["memberModelDetails"]
        key = next(each.get("inferenceKey") for each in listed if each["modelId"] == base)
        self._base = Entry(base, key, base)

    def create(self, name: str, members: Sequence[tuple[str, MemberConfig]]) -> str:
        """A group of these adapters under these keys; its id."""
        assert self._base is not None
        entries = [self._base]
        for key, member in members:
            known = self._adapter(member)
            entries.append(Entry(known.model_id, key, known.content))
        body: dict[str, Any] = {
            "createType": "CREATE",
            "displayName": name,
            "modelGroupDetails": {"type": "STACKED", "baseModelId": self._base.model_id},
            "memberModelEntries": {"memberModelDetails": [entry.wire() for entry in entries]},
        }
        return str(self.client.create_group(body)["id"])

    def digest(self, member: MemberConfig) -> str:
        return self._adapter(member).content

    def _adapter(self, member: MemberConfig) -> Entry:
        if member.source not in self._adapters:
            registered = self.client.register(member.source, model_id=member.id)
            self._adapters[member.source] = registered
        return self._adapters[member.source]

    def go(self, group_id: str) -> Update:
        """Make a group live and follow it to its end. Raises UpdateFailed with the reason."""
        requested = time.monotonic()
        work = self.client.update_live(self._deployment, group_id)
        switched = self._until_switched(work)
        while (state := self.client.work(work)["status"]) not in ("SUCCEEDED", "FAILED"):
            self._wait(requested)
        ended = time.monotonic()
        if state == "FAILED":
            said = "; ".join(str(each.get("message")) for each in self.client.work_errors(work))
            raise UpdateFailed(f"the update failed: {said}")
        self.generation += 1
        logs = self.client.work_logs(work)
        return Update(self.generation, requested, switched, ended, phases_of(logs), begins_of(logs))

    def _until_switched(self, work: str) -> float:
        """When this client learned that the switch had happened, or never will."""
        began = time.monotonic()
        while True:
            steps = {each.get("step") for each in self.client.work_logs(work)}
            status = self.client.work(work)["status"]
            if Phase.SWITCH.name in steps or status in ("SUCCEEDED", "FAILED"):
                return time.monotonic()
            self._wait(began)

    def _wait(self, since: float) -> None:
        if time.monotonic() - since > _LONGEST_SECONDS:
            raise UpdateFailed(f"an update did not end within {_LONGEST_SECONDS:.0f} s")
        time.sleep(self.poll_seconds)


def phases_of(logs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds from each phase's first log line to that of the next."""
    begins = begins_of(logs)
    return {name: begins[after] - begins[name] for name, after in pairwise(begins)}


def begins_of(logs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """When each phase's first log line was written, in order."""
    begins: dict[str, float] = {}
    for line in logs:
        phase = Phase.__members__.get(str(line.get("step")))
        if phase is not None:
            at = datetime.fromisoformat(str(line["timestamp"])).timestamp()
            begins.setdefault(phase.value, at)
    return begins


def phase_table(updates: Sequence[Update]) -> dict[str, dict[str, float]]:
    """Median and largest seconds of each phase, and of the whole, over all updates."""
    columns: dict[str, list[float]] = {}
    for update in updates:
        for name, seconds in update.phases.items():
            columns.setdefault(name, []).append(seconds)
        columns.setdefault("asked to switched", []).append(update.switched - update.requested)
        columns.setdefault("whole update", []).append(update.ended - update.requested)
    return {
        name: {"median": round(median(values), 4), "most": round(max(values), 4)}
        for name, values in columns.items()
    }
