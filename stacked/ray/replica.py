"""A replica, as Ray Serve sees it: an actor that starts a server of its own and passes requests on.

The server is the same process as everywhere: Ray's workers have other signals, log files and
libraries, and vLLM in one of them would look for Ray's placement groups.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from stacked.errors import EngineDead
from stacked.ray.door import Door
from stacked.ray.process import Server
from stacked.ray.scaling import FIRST_TOKEN, LEAST, MOST, SINCE, WAITING

_LOOK_SECONDS = 0.25
# Ray asks for two kinds of figures, and one look is enough for both.
_FRESH_SECONDS = 0.5
_WAITING, _ADAPTERS = "stacked_requests_waiting", "stacked_adapters"
_RESIDENT, _LORA = "stacked_adapter_resident", "vllm:lora_requests_info"
_WANTED, _SINCE = "stacked_fleet_wanted_instances", "stacked_fleet_wanted_since_seconds"
_READ = (_WAITING, _ADAPTERS, _RESIDENT, _LORA, _WANTED, _SINCE)


class Replica:
    """The server of this replica, from its start until its requests have ended."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, config: str, data_dir: str, metrics: tuple[str, int], drain_seconds: float
    ) -> None:
        """Return when it serves. Raises EngineStartFailed with what it said if it does not."""
        name = serve.get_replica_context().replica_id.unique_id
        self._drain_seconds = drain_seconds
        self._server = await asyncio.to_thread(Server, config, Path(data_dir), name, metrics)
        self._door = Door(self._server.address)
        self._metrics = f"http://{self._server.metrics[0]}:{self._server.metrics[1]}/metrics"
        self._looked: tuple[float, dict[str, Any]] = (0.0, {})
        while not await self._answers("ready"):
            self._server.check()
            await asyncio.sleep(_LOOK_SECONDS)
        self._server.begin()

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """What is deployed now of the file's `ray`, which a server is not started again for."""
        self._server.tell(json.dumps(settings))

    def __serve_build_asgi_app__(self) -> Door:
        return self._door

    async def __del__(self) -> None:
        """Ray has stopped sending requests here, and those that it sent have ended."""
        await self._server.stop(self._drain_seconds)
        await self._door.close()

    async def check_health(self) -> None:
        """Raises where only another start helps: Ray then makes one. What is not ready now, such
        as an engine that starts again, gets no requests, see `record_routing_stats`."""
        self._server.check()
        if not await self._answers("live"):
            raise EngineDead("the server of this replica will not serve any more")

    async def record_routing_stats(self) -> dict[str, Any]:
        """What `placement` knows of it; seldom another thing, as Ray tells every proxy of it."""
        said = await self._look() if await self._answers("ready") else None
        if said is None:
            return {"ready": False}
        lacks = {
            labels["key"]
            for labels, there in said[_RESIDENT]
            if labels["place"] == "host" and not there
        }
        slots = max((float(labels["max_lora"]) for labels, _ in said[_LORA]), default=0.0)
        adapters = sum(value for _, value in said[_ADAPTERS])
        crowded = 0 < slots < adapters
        return {"ready": True, "crowded": crowded, "lacks": sorted(lacks)}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling` asks of it. Nothing of the records where the server has read none."""
        said = await self._look() or {}
        waiting = sum(value for _, value in said.get(_WAITING, ()))
        found = {WAITING: waiting, FIRST_TOKEN: self._door.first_seconds()}
        bounds = {labels["bound"]: count for labels, count in said.get(_WANTED, ())}
        since = sum(value for _, value in said.get(_SINCE, ()))
        if since:
            found |= {LEAST: bounds["least"], MOST: bounds["most"], SINCE: since}
        return found

    async def _answers(self, probe: str) -> bool:
        try:
            async with self._door.session.get(f"{self._door.url}/health/{probe}") as answer:
                return bool(answer.status == 200)
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _look(self) -> dict[str, list[tuple[dict[str, str], float]]] | None:
        """Labels and values of the metrics that matter here; None if it does not say them."""
        at, said = self._looked
        if time.monotonic() - at < _FRESH_SECONDS:
            return said
        wanted = [("name[]", name) for name in _READ]
        try:
            async with self._door.session.get(self._metrics, params=wanted) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return None
        found = {each.name: each.samples for each in text_string_to_metric_families(text)}
        said = {name: [s[1:3] for s in found.get(name, ())] for _, name in wanted}
        self._looked = (time.monotonic(), said)
        return said
