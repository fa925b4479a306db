"""Two ways to bring adapters into a server under traffic: our LIVE update, and vLLM's endpoint.

Both report it as an update: when it began and ended, and when requests could use what was loaded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import httpx

from stacked.bench.updates import Update, Updater
from stacked.client import Client
from stacked.config import MemberConfig
from stacked.errors import UpdateFailed
from stacked.steps import Phase


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
