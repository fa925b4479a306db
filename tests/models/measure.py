"""Load many small models, replace some of them LIVE under clients, and compare every answer.

As a command, the long form: python -m tests.models.measure --count 500 --replaced 250 --clients 4
prints figures. The answer of a model is its factor, so that each shows which content it came from.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from stacked.core import Digest, Member, ModelFiles, ModelId
from stacked.errors import EngineDead, NotReady
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.loader import Loader
from stacked.models.engine import ModelHandle, ModelsEngine
from stacked.steps import Phase
from tests.models.making import folder, infer, pids_of, resident, running, score, times
from tests.waiting import until_async

_SCORE = """
def load_model(model_folder):
    with open(model_folder + "/factor") as file:
        return float(file.read())
def predict(data, model):
    return {"outputs": [{"data": [each * model for each in data["inputs"][0]["data"]]}]}
"""
_BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
).encode()


class Notes:
    """A journal that only takes."""

    def step(self, step: Phase, done: float, detail: str) -> None: ...

    def refused(self, adapter: Digest, error: Exception) -> None: ...

    async def commit(self, generation: int) -> None: ...


class Clients:
    """Requests without pause, each compared with what the content of its route answers."""

    def __init__(self, engine: ModelsEngine, live: Live[ModelHandle], answers: dict[Digest, float]):
        self.engine, self.live, self.answers = engine, live, answers
        self.seconds: list[float] = []
        self.wrong = 0
        self.failed: list[str] = []
        self.contents: set[Digest] = set()
        self._over = False

    async def run(self, count: int) -> None:
        await asyncio.gather(*(self._client(each) for each in range(count)))

    def stop(self) -> None:
        self._over = True

    async def _client(self, at: int) -> None:
        while not self._over:
            keys = [member.key for member in self.live.routing.members]
            at = (at + 7) % len(keys)
            admitted = self.live.admit({"model-key": str(keys[at])})
            began = time.perf_counter()
            with admitted.lease:
                handle = admitted.route.handle
                assert handle is not None
                try:
                    answer = await infer(self.engine, handle, _BODY, "application/json")
                except (EngineDead, NotReady) as error:
                    self.failed.append(error.code)
                    await asyncio.sleep(0.01)
                    continue
            self.seconds.append(time.perf_counter() - began)
            self.contents.add(handle.digest)
            factor = self.answers[handle.digest]
            found = json.loads(answer)["outputs"][0]["data"]
            self.wrong += found != [factor, 2 * factor, 3 * factor]


def made(place: Path, runtime: str, factors: range) -> dict[float, ModelFiles]:
    if runtime == "onnx":
        return {factor: times(place / str(factor), factor) for factor in factors}
    code = score(place / f"code{factors[0]}", _SCORE)
    return {each: folder(place / str(each), code, factor=str(each)) for each in factors}


def member(key: int, content: ModelFiles) -> Member:
    model = ModelId(f"ocid1.datasciencemodel.oc1..{content.digest.removeprefix('sha256:')}")
    return Member(model, content, f"key-{key}")


async def measure(
    place: Path,
    *,
    count: int,
    replaced: int,
    clients: int,
    runtime: str = "onnx",
    processes: int = 1,
    kill: bool = False,
) -> dict[str, Any]:
    """The figures. `kill`: end a process by -9 after the update, and wait for all models."""
    contents = made(place, runtime, range(1, count + 1))
    newer = made(place, runtime, range(count + 1, count + replaced + 1))
    answers = {each.digest: factor for factor, each in (contents | newer).items()}
    old = [member(at, each) for at, each in enumerate(contents.values())]
    changed = [member(at, each) for at, each in enumerate(newer.values())]
    async with running(processes=processes) as (engine, given_up):
        began = time.perf_counter()
        staged: dict[Digest, ModelHandle] = {}
        assert not await Loader(engine).stage([*contents.values()], staged, lambda _: None)
        found: dict[str, Any] = {"load_s": time.perf_counter() - began}
        found["loaded_mb"] = resident(engine) / 1e6
        live = Live(engine, Routing.of(None, tuple(old), staged), drain_seconds=60)
        traffic = Clients(engine, live, answers)
        running_clients = asyncio.create_task(traffic.run(clients))
        await asyncio.sleep(0)
        peak = asyncio.create_task(_peak(engine))
        before = len(traffic.seconds)
        began = time.perf_counter()
        report = await live.update(None, (*changed, *old[replaced:]), Notes())
        found["update_s"] = time.perf_counter() - began
        found["phases_s"] = {phase.value: took for phase, took in report.seconds.items()}
        found["answers_meanwhile"] = len(traffic.seconds) - before
        found["failed_by_the_update"] = len(traffic.failed) + report.ended
        found["peak_mb"] = await _stopped(peak)
        found["after_mb"] = resident(engine) / 1e6
        if kill:
            began = time.perf_counter()
            killed = pids_of(engine)[0]
            os.kill(killed, signal.SIGKILL)
            handles = live.routing.handles.values()
            await until_async(lambda: killed not in pids_of(engine))
            await until_async(lambda: all(map(engine.ready, handles)))
            found["back_after_kill_s"] = time.perf_counter() - began
            found["failed_by_the_kill"] = dict(Counter(traffic.failed))
        traffic.stop()
        await running_clients
        found |= {"answers": len(traffic.seconds), "wrong": traffic.wrong}
        found["contents"] = len(traffic.contents)
        found["given_up"] = given_up
        found |= await _alone(engine, [*live.routing.handles.values()])
        return found


async def _peak(engine: ModelsEngine) -> float:
    most = 0.0
    while True:
        most = max(most, resident(engine) / 1e6)
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            return most


async def _stopped(task: asyncio.Task[float]) -> float:
    task.cancel()
    return await task


async def _alone(engine: ModelsEngine, handles: list[ModelHandle]) -> dict[str, float]:
    """The time of one request where there are no others, in milliseconds; its threads."""
    seconds = []
    for at in range(200):
        began = time.perf_counter()
        await infer(engine, handles[at % len(handles)], _BODY, "application/json")
        seconds.append(time.perf_counter() - began)
    threads = [psutil.Process(pid).num_threads() for pid in pids_of(engine)]
    return {"infer_p50_ms": statistics.median(seconds) * 1e3, "threads": max(threads)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--replaced", type=int, default=250)
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--runtime", choices=("onnx", "score"), default="onnx")
    options.add_argument("--kill", action="store_true")
    with tempfile.TemporaryDirectory() as place:
        found = asyncio.run(measure(Path(place), **vars(options.parse_args())))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
