"""The storm for groups without a base: LIVE updates round robin under clients, over HTTP.

Every answer is compared with what the version that its headers name must give.
python -m tests.models.storm --updates 100 --clients 16
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from stacked.bench.check import Answer, Refusal, Version, Violation, judge
from stacked.bench.clients import Clients
from stacked.bench.updates import Update, Updater, phase_table
from stacked.client import Client
from tests.models.making import request, times
from tests.models.remote import (
    Remote,
    changed,
    code_for,
    deploy,
    group,
    model,
    serving_models,
    workers,
)
from tests.processes import resident_bytes
from tests.serving import Server

SCORE = """
def load_model(model_folder):
    with open(model_folder + "/factor") as file:
        return float(file.read())
def predict(data, model):
    values = data["inputs"][0]["data"]
    return {{"outputs": [{{"data": [each * model + {plus} for each in values]}}]}}
"""
ROWS = ([1, 2, 3], [10, -20, 30], [0, 0, 7])
BODIES = [request(row, [1, 3]) for row in ROWS]

Meaning = tuple[float, float]
"""A factor and what is added: what a content answers."""
Known = dict[tuple[int, str, int], tuple[int, ...]]


@dataclass(frozen=True)
class Group:
    id: str
    keys: Mapping[str, Meaning]


class Updates(Updater):
    """LIVE updates of what the server serves now."""

    def __post_init__(self) -> None:
        status = self.client.status()
        self.generation, self._deployment = status["generation"], status["deploymentId"]


class Asking(Clients):
    """`clients` clients, each with one request after the other, and what they got."""

    def __init__(self, url: str, keys: Sequence[str], clients: int) -> None:
        super().__init__(url)
        self.answers: list[Answer] = []
        self.refusals: list[Refusal] = []
        self.violations: list[Violation] = []
        self._keys, self._clients = keys, clients

    async def _work(self, client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._client(client, random.Random(number)))

    async def _client(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        last = 0
        while not self._stop.is_set():
            key, row = chance.choice(self._keys), chance.randrange(len(ROWS))
            sent = time.monotonic()
            try:
                response = await client.post(
                    "/predict", headers={"model-key": key}, content=BODIES[row]
                )
            except httpx.HTTPError as error:
                refusal = Refusal(key, sent, time.monotonic(), type(error).__name__, str(error))
                self.refusals.append(refusal)
                continue
            now, headers = time.monotonic(), response.headers
            if response.status_code != 200:
                code = str(response.json().get("code"))
                self.refusals.append(Refusal(key, sent, now, code, response.text[:200]))
                await asyncio.sleep(0.005)  # a refusal costs nothing: do not only ask for them
                continue
            generation, digest = int(headers["model-generation"]), headers["model-digest"]
            data = tuple(response.json()["outputs"][0]["data"])
            said = headers["model-key"]
            self.answers.append(
                Answer(key, row, sent, now, digest, generation, data, whole=True, said_key=said)
            )
            if generation < last:
                self.violations.append(Violation("backwards", f"{last}, then {generation}"))
            last = generation


def expected(number: int, digest: str, meaning: Meaning) -> Known:
    """What a content answers to each row, for `judge`."""
    factor, plus = meaning
    return {
        (number, digest, at): tuple(int(factor * each + plus) for each in row)
        for at, row in enumerate(ROWS)
    }


def digests(server: Remote) -> dict[str, str]:
    """What each key means now."""
    return {each["inferenceKey"]: each["digest"] for each in server.status()["models"]}


class Made:
    """Models in a server: each answers as no other does."""

    def __init__(self, server: Remote, directory: Path, first: int = 2) -> None:
        self._server, self._directory = server, directory
        self.factors = itertools.count(first)

    def onnx(self, factor: float | None = None) -> tuple[str, Meaning]:
        factor = next(self.factors) if factor is None else factor
        file = times(self._directory / f"onnx-{factor}", factor).path / "model.onnx"
        return model(self._server, **{"model.onnx": file.read_bytes()}), (factor, 0)

    def score(self) -> tuple[str, Meaning]:
        factor = next(self.factors)
        own = {"score.py": SCORE.format(plus=1000).encode(), "factor": str(factor).encode()}
        return model(self._server, **own), (factor, 1000)

    def data(self) -> tuple[str, Meaning]:
        """For a group's score.py."""
        factor = next(self.factors)
        return model(self._server, **{"factor.pkl": b"", "factor": str(factor).encode()}), (
            factor,
            0,
        )

    def group(self, kind: str, members: Mapping[str, tuple[str, Meaning]], plus: int = 0) -> Group:
        id = group(self._server, kind, **{key: each for key, (each, _) in members.items()})
        if kind == "HOMOGENEOUS":
            code_for(self._server, id, SCORE.format(plus=plus))
        return Group(id, {key: (factor, p + plus) for key, (_, (factor, p)) in members.items()})


def heterogeneous(made: Made) -> list[Group]:
    """Four groups: one key for the same content in all of them, and one that changes runtime."""
    fixed, own = made.onnx(), made.score()
    groups = []
    for at in range(4):
        members = {
            "fixed": fixed,
            "own": own,
            "onnx": made.onnx(),
            "score": made.score(),
            "either": made.score() if at % 2 else made.onnx(),
        }
        members |= {"passing": made.onnx()} if at % 2 else {}
        groups.append(made.group("HETEROGENEOUS", members))
    return groups


def homogeneous(made: Made) -> list[Group]:
    """Four groups of two score.py: the models, the code, or both change."""
    fixed, groups = made.data(), []
    for at in range(4):
        members = {"fixed": fixed, "other": made.data()}
        members |= {"passing": made.data()} if at % 2 else {}
        groups.append(made.group("HOMOGENEOUS", members, plus=1000 * (1 + at // 2)))
    return groups


def storm(
    server: Server, remote: Remote, groups: Sequence[Group], updates: int, clients: int
) -> dict[str, Any]:
    """The figures; nothing is served, or a group of another kind."""
    known, meant = _learned(remote, groups)
    before = _now(server)
    keys = sorted({key for each in groups for key in each.keys})
    with Client(server.url) as client:
        updater = Updates(client, poll_seconds=0.02)
        asking = Asking(server.url, keys, clients)
        versions = [Version(updater.generation, 0, meant[0], time.monotonic())]
        done: list[Update] = []
        began = time.monotonic()
        with asking:
            # Whole rounds: the first group, whose processes were counted, is served again.
            for at in range(1, updates + 1 + -updates % len(groups)):
                number = at % len(groups)
                update = updater.go(groups[number].id)
                versions[-1] = replace(versions[-1], replaced=update.switched)
                new = Version(update.generation, number, meant[number], update.requested)
                versions.append(new)
                done.append(update)
                if asking.failed:
                    break
        seconds = time.monotonic() - began
    found = judge(asking.answers, asking.refusals, versions, known) + asking.violations
    return {
        "updates": len(done),
        "clients": clients,
        "seconds": round(seconds, 1),
        "answers": len(asking.answers),
        "answers_by_key": dict(sorted(Counter(each.key for each in asking.answers).items())),
        "refused": dict(Counter(each.code for each in asking.refusals)),
        "generations_that_answered": len({each.generation for each in asking.answers}),
        "under_way_at_a_switch": sum(
            any(each.sent <= update.switched <= each.ended for update in done)
            for each in asking.answers
        ),
        "violations": [f"{each.kind}: {each.text}" for each in found],
        "before": before,
        "after": _now(server),
        "phases_seconds": phase_table(done),
    }


def _learned(remote: Remote, groups: Sequence[Group]) -> tuple[Known, list[dict[str, str]]]:
    """What each key of each group means, and the first is served; no client is there yet."""
    known: Known = {}
    meant: list[dict[str, str]] = []
    id = remote.status().get("deploymentId")
    how = "ZDT"
    for number, each in enumerate(groups):
        if id is None:
            id = deploy(remote, each.id)
        else:
            assert changed(remote, id, each.id, how) == "SUCCEEDED"
        how = "LIVE"
        meant.append(digests(remote))
        assert meant[-1].keys() == each.keys.keys()
        for key, digest in meant[-1].items():
            known |= expected(number, digest, each.keys[key])
    assert changed(remote, str(id), groups[0].id) == "SUCCEEDED"
    return known, meant


def _now(server: Server) -> dict[str, int]:
    here = [pid for pid, _ in workers(server)]
    return {
        "processes": len(here),
        "workers_mb": sum(map(resident_bytes, here)) // 10**6,
        "server_mb": resident_bytes(server.process.pid) // 10**6,
    }


def run(directory: Path, updates: int, clients: int) -> dict[str, Any]:
    """Both kinds, one after the other on one server."""
    with serving_models(directory) as (server, remote):
        made = Made(remote, directory)
        return {
            "HETEROGENEOUS": storm(server, remote, heterogeneous(made), updates, clients),
            "HOMOGENEOUS": storm(server, remote, homogeneous(made), updates, clients),
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--updates", type=int, default=100)
    options.add_argument("--clients", type=int, default=16)
    with tempfile.TemporaryDirectory() as place:
        found = run(Path(place), **vars(options.parse_args()))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
