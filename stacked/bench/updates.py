"""LIVE updates as a client makes them: register, create groups, switch, and see when it is done.

Next to them, vLLM's own endpoint, which loads one adapter after the other.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import httpx

from stacked.client import Client, Entry, entries_of
from stacked.config import MemberConfig
from stacked.errors import UpdateFailed
from stacked.steps import Phase

_LONGEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Update:
    """One update that succeeded: when it was requested, switched and over, on the monotonic clock.

    `switched` is when the switch was acknowledged.
    """

    generation: int
    requested: float
    switched: float
    ended: float
    begins: Mapping[str, float] = field(default_factory=dict)
    """When each phase began, in seconds since the epoch, as the server reports."""

    @property
    def phases(self) -> dict[str, float]:
        """The seconds from each phase's beginning to that of the next."""
        return {
            name: self.begins[after] - self.begins[name] for name, after in pairwise(self.begins)
        }


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
        self._base = next(each for each in entries_of(group) if each.model_id == base)

    def create(self, name: str, members: Sequence[tuple[str, MemberConfig]]) -> str:
        """A group of these adapters under these keys; its id."""
        assert self._base is not None
        known = [(key, self._adapter(member)) for key, member in members]
        entries = [self._base, *(replace(entry, key=key) for key, entry in known)]
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
        requested, switched = time.monotonic(), math.inf
        work_id = self.client.update_live(self._deployment, group_id)
        for work, logs in self.client.follow(work_id, self.poll_seconds):
            now, state = time.monotonic(), work["status"]
            if any(each.get("step") == Phase.SWITCH.name for each in logs):
                switched = min(switched, now)
            if now - requested > _LONGEST_SECONDS:
                raise UpdateFailed(f"an update did not end within {_LONGEST_SECONDS:.0f} s")
        if state != "SUCCEEDED":
            said = "; ".join(str(each.get("message")) for each in self.client.work_errors(work_id))
            raise UpdateFailed(f"the update failed: {said}")
        self.generation += 1
        return Update(self.generation, requested, min(switched, now), now, begins_of(logs))


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
        return Update(0, requested, ended, ended)

    def unload(self) -> None:
        while self._loaded:
            self._post("unload", {"lora_name": self._loaded.pop()})

    def _post(self, verb: str, said: Mapping[str, str]) -> None:
        response = self._http.post(f"/v1/{verb}_lora_adapter", json=dict(said))
        if not response.is_success:
            raise UpdateFailed(f"vLLM's server did not {verb} it: {response.text[:300]}")
