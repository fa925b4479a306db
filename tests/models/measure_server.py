"""Many members in a real server, half of them replaced LIVE under clients; and beside Triton.

python -m tests.models.measure_server --count 500 --replaced 250 --clients 4 --beside 16
Every answer is compared. Beside Triton with STACKED_TRITON=…/site-packages; the same members are in
this server's own process, in Triton behind this server, and in Triton without it, in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stacked.bench.check import Version, judge
from stacked.client import Client, entries_of
from tests.models import tritons
from tests.models.making import times
from tests.models.measure_triton import private_mb
from tests.models.remote import Remote, deploy, group, serving_models, workers
from tests.models.storm import BODIES, Asking, Made, Meaning, Updates, digests, expected
from tests.processes import peak_bytes, resident_bytes
from tests.serving import Server

_ROUNDS, _REQUESTS, _AT_ONCE = 4, 400, 8


@dataclass
class Door:
    """Where requests go, each with the next of these paths and headers."""

    url: str
    names: list[tuple[str, dict[str, str]]]
    body: bytes
    p50_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def round(self) -> None:
        """One client's median, then how much eight get."""
        self.p50_ms.append(statistics.median(self._client(_REQUESTS)) * 1e3)
        began = time.perf_counter()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._client, [_REQUESTS // _AT_ONCE] * _AT_ONCE))
        self.rates.append(_REQUESTS / (time.perf_counter() - began))

    def _client(self, count: int) -> list[float]:
        """The seconds of each of so many requests on one connection."""
        place, seconds = urlsplit(self.url), []
        connection = http.client.HTTPConnection(place.hostname or "", place.port)
        for at in range(count):
            path, headers = self.names[at % len(self.names)]
            began = time.perf_counter()
            connection.request("POST", path, self.body, headers)
            response = connection.getresponse()
            answer = response.read()
            seconds.append(time.perf_counter() - began)
            assert response.status == 200, answer
        connection.close()
        return seconds

    def figures(self) -> dict[str, Any]:
        return {
            "p50_ms_1_client": [round(each, 2) for each in self.p50_ms],
            "requests_per_s_8_clients": [round(each) for each in self.rates],
        }


def door(server: Server, keys: list[str]) -> Door:
    return Door(server.url, [("/predict", {"model-key": key}) for key in keys], BODIES[0])


def live(
    server: Server,
    remote: Remote,
    old: Mapping[str, Meaning],
    new: tuple[str, Mapping[str, Meaning]],
    clients: int,
) -> dict[str, Any]:
    """The figures of one LIVE update from what is served to a group of these meanings."""
    before, known = digests(remote), {}
    for key, digest in before.items():
        known |= expected(0, digest, old[key])
    with Client(server.url) as client:
        updater = Updates(client, poll_seconds=0.1)
        first = Version(updater.generation, 0, before, time.monotonic())
        asking = Asking(server.url, sorted(before), clients)
        with asking:
            while len(asking.answers) < 20 * clients:
                time.sleep(0.01)
            update = updater.go(new[0])
            later = len(asking.answers) + 20 * clients
            while len(asking.answers) < later:
                time.sleep(0.01)
    after = digests(remote)
    for key, digest in after.items():
        known |= expected(1, digest, new[1][key])
    versions = [
        Version(first.generation, 0, before, first.began, replaced=update.switched),
        Version(update.generation, 1, after, update.requested),
    ]
    meanwhile = [
        each
        for each in asking.answers
        if update.requested <= each.ended and each.sent <= update.ended
    ]
    return {
        "update_s": round(update.ended - update.requested, 2),
        "phases_s": {name: round(each, 2) for name, each in update.phases.items()},
        "answers": len(asking.answers),
        "answers_meanwhile": len(meanwhile),
        "longest_meanwhile_s": round(max(each.ended - each.sent for each in meanwhile), 2),
        "by_generation": dict(Counter(each.generation for each in asking.answers)),
        "failed": dict(Counter(each.code for each in asking.refusals)),
        "violations": [
            str(each)
            for each in judge(asking.answers, asking.refusals, versions, known) + asking.violations
        ],
    }


def memory(server: Server) -> dict[str, Any]:
    here = [pid for pid, _ in workers(server)]
    return {
        "processes": len(here),
        "workers_mb": round(sum(map(resident_bytes, here)) / 1e6),
        "workers_peak_mb": round(sum(map(peak_bytes, here)) / 1e6),
        "server_mb": round(resident_bytes(server.process.pid) / 1e6),
    }


def many(directory: Path, count: int, replaced: int, clients: int) -> dict[str, Any]:
    """ONNX members of a file, started; some replaced LIVE."""
    files = {f"k{at}": times(directory / f"first-{at}", at + 2).path for at in range(count)}
    old: dict[str, Meaning] = {key: (at + 2, 0) for at, key in enumerate(files)}
    members = [{"key": key, "source": str(path)} for key, path in files.items()]
    own = {"kind": "HETEROGENEOUS", "members": members}
    began = time.perf_counter()
    with serving_models(directory, group=own) as (server, remote):
        found: dict[str, Any] = {"start_s": round(time.perf_counter() - began, 2)}
        found["started"] = memory(server)
        began = time.perf_counter()
        (directory / "made").mkdir()
        made = Made(remote, directory / "made", first=count + 2)
        newer = [made.onnx() for _ in range(replaced)]
        with Client(server.url) as client:
            entries = {
                e.label: e.model_id for e in entries_of(client.group(client.status()["groupId"]))
            }
        keys = [*entries]
        wanted = entries | {key: id for key, (id, _) in zip(keys, newer, strict=False)}
        meanings = old | {key: each for key, (_, each) in zip(keys, newer, strict=False)}
        target = group(remote, "HETEROGENEOUS", **wanted)
        found["uploads_s"] = round(time.perf_counter() - began, 2)
        found["live"] = live(server, remote, old, (target, meanings), clients)
        found["after"] = memory(server)
        asked = door(server, keys)
        for _ in range(_ROUNDS):
            asked.round()
        return found | asked.figures()


def beside(directory: Path, count: int, clients: int) -> dict[str, Any]:
    """A HOMOGENEOUS group in both engines."""
    with ExitStack() as stack:
        other = stack.enter_context(tritons.running(directory / "triton", threads=64))
        places = {
            "own process": {"code": True},
            "Triton behind this server": {"code": True, "triton": other.url},
        }
        found: dict[str, Any] = {}
        doors: dict[str, Door] = {}
        updates = {}
        for name, models in places.items():
            place = directory / name.replace(" ", "-")
            place.mkdir()
            server, remote = stack.enter_context(serving_models(place, models=models))
            made = Made(remote, place)
            data = {f"k{at}": made.data() for at in range(count)}
            half = data | {f"k{at}": made.data() for at in range(count // 2)}
            first, second = (made.group("HOMOGENEOUS", each, 1000) for each in (data, half))
            began = time.perf_counter()
            deploy(remote, first.id)
            found[name] = {"deployed_s": round(time.perf_counter() - began, 2)}
            pids = [pid for pid, _ in workers(server)] or [other.process.pid]
            found[name]["private_mb_of_the_models"] = round(private_mb(pids))
            doors[name] = door(server, sorted(data))
            updates[name] = (server, remote, first.keys, (second.id, second.keys), clients)
        call = {"name": "call", "datatype": "BYTES", "shape": [2]}
        body = json.dumps({"inputs": [call | {"data": ["", b64encode(BODIES[0]).decode()]}]})
        paths = [f"/v2/models/{name}/infer" for name in other.loaded if name.startswith("stacked-")]
        doors["Triton alone"] = Door(other.url, [(each, {}) for each in paths], body.encode())
        for _ in range(_ROUNDS):
            for each in doors.values():
                each.round()
        for name, update in updates.items():
            found[name]["live"] = live(*update)
        return {name: found.get(name, {}) | each.figures() for name, each in doors.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--replaced", type=int, default=250)
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--beside", type=int, default=0, help="members in Triton too; 0: none")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = {"many": many(Path(place), given.count, given.replaced, given.clients)}
    if given.beside:
        with tempfile.TemporaryDirectory() as place:
            found["beside"] = beside(Path(place), given.beside, given.clients)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
