"""LIVE updates as a client makes them: register, create groups, switch, and see when it is done.

Next to them, vLLM's own endpoint, which loads one adapter after the other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import httpx

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
        return str(self.client.create_group(name, entries)["id"])

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


class Loader(Protocol):
    """`load` brings all adapters but the first in; `unload` makes the first serve alone again."""

    streamed: str
    """The name of the first."""

    def load(self) -> Update: ...
    def unload(self) -> None: ...


class LiveUpdate:
    """A LIVE update from a group of the first to a group of all, and back."""

    def __init__(self, client: Client, members: Mapping[str, Path]) -> None:
        # Polled rarely: each request takes time of the server that is being timed.
        self._updater = Updater(client, poll_seconds=0.5)
        listed = [(key, MemberConfig(source=str(path))) for key, path in members.items()]
        self.streamed = listed[0][0]
        self._alone = self._updater.create("first", listed[:1])
        self._whole = self._updater.create("all", listed)
        self._updater.go(self._alone)

    def load(self) -> Update:
        apart = time.time() - time.monotonic()
        update = self._updater.go(self._whole)
        # The server's own time is more exact than our polling, if both have the same clock.
        began = update.begins.get(Phase.SWITCH.value, 0.0) - apart
        known = update.requested <= began <= update.switched
        return replace(update, switched=began) if known else update

    def unload(self) -> None:
        self._updater.go(self._alone)


class VllmEndpoint:
    """`/v1/load_lora_adapter` for one after the other; the server was started with the first."""

    def __init__(self, url: str, members: Mapping[str, Path]) -> None:
        self.streamed = next(iter(members))
        self._rest = {key: path for key, path in members.items() if key != self.streamed}
        self._http = httpx.Client(base_url=url, timeout=300)
        self._numbers = itertools.count(1)
        self._loaded: list[str] = []

    def load(self) -> Update:
        number = next(self._numbers)
        requested = time.monotonic()
        for key, path in self._rest.items():
            name = f"{key}-{number}"
            self._post("load", {"lora_name": name, "lora_path": str(path)})
            self._loaded.append(name)
        ended = time.monotonic()
        return Update(0, requested, ended, ended, {})

    def unload(self) -> None:
        while self._loaded:
            self._post("unload", {"lora_name": self._loaded.pop()})

    def _post(self, verb: str, said: Mapping[str, str]) -> None:
        response = self._http.post(f"/v1/{verb}_lora_adapter", json=dict(said))
        if not response.is_success:
            raise UpdateFailed(f"vLLM's server did not {verb} it: {response.text[:300]}")
