"""A group of 500 starts, and 250 of it are changed LIVE under three streams, on the real base.

Two minutes of a real engine and 700 MB of adapters, so `-m long -s` asks for it and prints what it
measured. No time decides: what is asserted is that it works, and that nobody is answered wrongly.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stacked.bases import default_data_dir, resolve
from stacked.bench.adapters import generate, size_of
from stacked.store import BaseModules
from tests.processes import descendants, resident_bytes
from tests.serving import Server, free_port, serving

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

GROUP, CHANGED = 500, 250
STEADY_SECONDS = 15
API = "/20190101"


def write_config(directory: Path, base: Path, sources: Sequence[Path], port: int) -> Path:
    members = [{"key": f"k{at}", "source": str(source)} for at, source in enumerate(sources)]
    tree = {
        "base": {"model": str(base), "key": "base"},
        "group": {"name": "size", "members": members},
        "engine": {"max_model_len": 1024, "max_loras": 8, "enable_prefix_caching": False},
        "server": {"port": port, "adapter_roots": [str(directory)]},
    }
    config = directory / "size.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return config


async def stream(
    http: httpx.AsyncClient, key: str, gaps: list[tuple[float, float]], on: Callable[[], bool]
) -> None:
    """Stream answers of one key one after the other; each token's time and the wait before it."""
    asked = {"model": key, "prompt": "Once upon a time", "max_tokens": 700, "temperature": 0}
    while on():
        body = asked | {"stream": True, "ignore_eos": True}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            last = None
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    assert "error" not in json.loads(line[6:])
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append((now, now - last))
                    last = now
                if not on():
                    break


async def register(http: httpx.AsyncClient, sources: Sequence[Path]) -> list[str]:
    ids = []
    for source in sources:
        metadata = [{"key": "source", "value": str(source)}]
        made = await http.post(f"{API}/models", json={"customMetadataList": metadata})
        assert made.status_code == 200, made.text
        ids.append(made.json()["id"])
    return ids


async def update(http: httpx.AsyncClient, group_id: str, out: Sequence[str], new: list[str]) -> Any:
    """Clone the group without some models and with others under their keys, and make it live."""
    members = (await http.get(f"{API}/modelGroups/{group_id}")).json()["memberModelEntries"]
    keys = {m["modelId"]: m["inferenceKey"] for m in members["memberModelDetails"]}
    values = [{"modelId": n, "inferenceKey": keys[o]} for n, o in zip(new, out, strict=True)]
    items = [
        {"operation": "REMOVE", "values": [{"modelId": id} for id in out]},
        {"operation": "INSERT", "values": values},
    ]
    source = {
        "modelGroupCloneSourceType": "MODEL_GROUP",
        "sourceId": group_id,
        "patchModelGroupMemberModelDetails": {"items": items},
    }
    body = {"createType": "CLONE", "modelGroupCloneSourceDetails": source}
    group = await http.post(f"{API}/modelGroups", json=body)
    assert group.status_code == 200, group.text
    status = (await http.get("/stacked/status")).json()
    live = {
        "deploymentType": "MODEL_GROUP",
        "updateType": "LIVE",
        "modelGroupConfigurationDetails": {"modelGroupId": group.json()["id"]},
    }
    path = f"{API}/modelDeployments/{status['deploymentId']}"
    asked = await http.put(path, json={"modelDeploymentConfigurationDetails": live})
    assert asked.status_code == 202, asked.text
    work = f"{API}/workRequests/{asked.headers['opc-work-request-id']}"
    while True:
        told = (await http.get(work)).json()
        if told["status"] in ("SUCCEEDED", "FAILED"):
            return told
        await asyncio.sleep(0.25)


def engine_bytes(server: Server) -> int:
    """The largest of the server's processes: the engine's."""
    return max(resident_bytes(pid) for pid, _ in descendants(server.process.pid))


async def measure(server: Server, fresh: Sequence[Path]) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
        status = (await http.get("/stacked/status")).json()
        old = [model["modelId"] for model in status["models"]][-CHANGED:]
        new = await register(http, fresh)
        gaps: list[tuple[float, float]] = []
        streaming = True
        streams = [
            asyncio.create_task(stream(http, key, gaps, lambda: streaming))
            for key in ("base", "k0", "k1")
        ]
        await asyncio.sleep(STEADY_SECONDS)
        began = time.perf_counter()
        told = await update(http, status["groupId"], old, new)
        ended = time.perf_counter()
        streaming = False
        await asyncio.gather(*streams)
        assert told["status"] == "SUCCEEDED"
        after = (await http.get("/stacked/status")).json()
        assert after["generation"] == status["generation"] + 1
        assert {model["modelId"] for model in after["models"]} >= set(new)
        assert all(model["resident"] for model in after["models"])
    steady = [gap for at, gap in gaps if began - STEADY_SECONDS + 3 < at < began]
    during = [gap for at, gap in gaps if began <= at <= ended]
    p99 = statistics.quantiles(steady, n=100)[98]
    return {
        "update_seconds": ended - began,
        "steady_p50_ms": statistics.median(steady) * 1e3,
        "steady_p99_ms": p99 * 1e3,
        "update_p50_ms": statistics.median(during) * 1e3,
        "update_p99_ms": statistics.quantiles(during, n=100)[98] * 1e3,
        "update_worst_ms": max(during) * 1e3,
    }


def test_500_start_and_250_of_them_are_changed_live(tmp_path: Path) -> None:
    base = resolve("smollm2-135m-instruct", default_data_dir())
    modules = BaseModules.read(base)
    paths = generate(modules, GROUP + CHANGED, 4, ("q_proj", "v_proj"), tmp_path)
    seconds, held = {}, {}
    for count in (1, GROUP):
        place = tmp_path / f"server-{count}"
        place.mkdir()
        port = free_port()
        config = write_config(tmp_path, base, paths[:count], port)
        began = time.perf_counter()
        with serving(str(config), "--data-dir", "data", directory=place, port=port) as server:
            seconds[count], held[count] = time.perf_counter() - began, engine_bytes(server)
            figures = asyncio.run(measure(server, paths[GROUP:])) if count == GROUP else {}
            held["after"] = engine_bytes(server)
    size = size_of(paths[0])
    each = (held[GROUP] - held[1]) / (GROUP - 1)
    print()
    print(f"start: {seconds[1]:.1f} s with 1, {seconds[GROUP]:.1f} s with {GROUP} adapters")
    print(f"memory: {each / 1e6:.2f} MB for each, whose file has {size / 1e6:.2f} MB (float16)")
    print(f"engine: {held[GROUP] / 1e6:.0f} MB before the update, {held['after'] / 1e6:.0f} after")
    print(f"LIVE update of {CHANGED}: " + ", ".join(f"{k} {v:.1f}" for k, v in figures.items()))
