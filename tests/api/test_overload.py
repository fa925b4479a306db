"""Far more than an engine can do, of every kind, all at once: good clients are answered, and what
is held stays within its bounds.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from stacked.api.gate import Gate
from stacked.api.gateway import Gateway
from stacked.api.protocol import bounded
from stacked.callers import Caller
from stacked.config import LimitsConfig
from stacked.service import Service
from tests.api.doors import served
from tests.api.doubles import ByName, Double, ours, vllm
from tests.api.overload import KINDS, Target, measure, overload

SMALL = {
    "requests": 40,
    "sequences": 400,
    "bodies_bytes": 24 * 1024**2,
    "idle_seconds": 1,
    "body_seconds": 2,
}
CALLERS = {name: Caller(name) for name in ("load", "good")}


class Engine:
    """An app that answers four requests at a time, and streams megabytes where many are asked."""

    routes = vllm().routes

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(4)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads(await Request(scope, receive).body())
        async with self.slots:
            await asyncio.sleep(0.02)
        answer: Response = JSONResponse({"done": True})
        if body.get("stream"):
            count = 200 * body.get("n", 1) ** 2
            answer = StreamingResponse(self.events(count), media_type="text/event-stream")
        await answer(scope, receive, send)

    async def events(self, count: int) -> Any:
        for _ in range(count):
            yield b"data: " + b"x" * 1000 + b"\n\n"
        yield b"data: [DONE]\n\n"


async def test_good_clients_are_answered_and_what_is_held_is_bounded() -> None:
    limits = LimitsConfig(**SMALL)
    double = Double(Engine(), limits=limits, unknown_parameters="ignore")
    assert double.door.known  # which imports libraries for seconds
    gateway = Gateway(cast(Service, double), ours(), cast(Gate, ByName(CALLERS)))
    counts = gateway._limits

    def sample() -> tuple[float, ...]:
        return counts.bodies._total, counts._requests._total, counts._of_keys._total

    with served(gateway, http=bounded(limits, 4096)) as url:
        port = urlsplit(url).port or 0
        load = Target(port, "a", {"who": "load"}, SMALL)
        good = Target(port, "base", {"who": "good"}, SMALL)
        report = await overload(load, good, each=10, seconds=3, sample=sample)
    assert set(report.statuses("good")) == {"200"}
    for kind, fine in (("plain", "200"), ("stream", "200"), ("slow writer", "408")):
        assert set(report.statuses(kind)) <= {fine, "429"}
    refused = {kind for kind in KINDS if "429" in report.statuses(kind)}
    assert refused, "the load was not above the limits"
    most = [max(column) for column in zip(*report.memory, strict=True)]
    assert most[0] <= SMALL["bodies_bytes"] / 2
    assert most[1] <= SMALL["requests"] / 2 + 2
    for places in (counts.bodies, counts._requests, counts._of_keys, counts._of_callers):
        assert (places._total, dict(places._taken)) == (0, {})


@pytest.mark.long
@pytest.mark.engine
def test_memory_stays_bounded_at_ten_times_the_capacity(tmp_path: Path) -> None:
    report = measure(tmp_path, 60)
    assert set(report.statuses("good")) == {"200"}
    assert report.left == 0
    half = len(report.memory) // 2
    for column in zip(*report.memory, strict=True):
        assert max(column[half:]) < max(column[5:half]) * 1.2
