"""The long form: ten thousand mutants through the checks, then those that pass into an engine.

    python -m tests.hostile.run check DIRECTORY --count 10000 --seed 1     half an hour
    python -m tests.hostile.run load DIRECTORY                             a running tiny engine

`check` forks a process for each mutant, bounded in memory and time, and writes `checked.json`.
`load` sends those that passed, and some of the others, through the HTTP door; meanwhile it compares
the tokens of a healthy adapter and the base, alone and in batches, and writes `loaded.json`. Both
end with 1 on a fault.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import httpx
import yaml

from stacked.store.disk import clear
from tests import tiny
from tests.hostile.draft import Draft
from tests.hostile.ground import WORDS, Ground, strays
from tests.hostile.mutants import mutant
from tests.hostile.packing import OUTSIDE
from tests.processes import alive, descendants, peak_bytes
from tests.serving import Server, engine_process, free_port, serving

BATCH = 25
PART = 250
WORKERS = 3
TARGETS = ("q_proj", "v_proj", "down_proj")
TOKENS = 8
GOOD_KEYS = ("healthy", "base")
PROMPTS = ("The quick brown fox", "Count the singers", "a b c d e f g h i j k l m n o p q r s t")
GROWTH_MIB = 512  # more than the server or its engine may come to hold, whatever is loaded
_LIMITS = {"max_model_len": 128, "max_loras": 2, "max_cpu_loras": 8, "max_lora_rank": 16}


def check(directory: Path, count: int, seed: int) -> int:
    shutil.rmtree(directory, ignore_errors=True)
    base = tiny.build_base(directory / "base")
    tiny.build_adapter(directory / "healthy", base, 1, rank=2, target_modules=TARGETS)
    numbers, began = range(count), time.monotonic()
    parts = [(directory, seed, numbers[at : at + PART]) for at in range(0, count, PART)]
    outcomes: Counter[str] = Counter()
    report: dict[str, Any] = {"inputs": count, "seed": seed, "faults": [], "passed": []}
    peak, slowest = 0, 0.0
    # Spawned: a fork of this process would have torch's threads in an unknown state.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for done, part in enumerate(pool.map(_part, parts), start=1):
            outcomes.update(part.counts)
            report["faults"] += part.faults
            report["passed"] += part.passed
            peak, slowest = max(peak, part.peak_kib), max(slowest, part.slowest)
            print(done * PART, f"{time.monotonic() - began:.0f} s", report["faults"], flush=True)
    report |= {
        "outcomes": dict(outcomes.most_common()),
        "peak MiB of one check": peak >> 10,
        "slowest check, s": round(slowest, 1),
        "seconds": round(time.monotonic() - began),
    }
    return _written(directory / "checked.json", report, bool(report["faults"]))


@dataclass(frozen=True)
class Part:
    counts: Counter[str]
    faults: list[str]
    passed: list[int]
    peak_kib: int
    slowest: float


def _part(part: tuple[Path, int, range]) -> Part:
    """Check some of the mutants in a directory of their own."""
    directory, seed, numbers = part
    place = directory / f"part-{numbers[0]}"
    place.mkdir()
    logging.getLogger("stacked.store").setLevel(logging.ERROR)
    ground, passed = Ground(place, directory / "base", directory / "healthy", seed), []
    for number in numbers:
        if ground.check(number)[1].kind == "passed":
            passed.append(number)
        ground.drop(number)
    ground.faults += ground.astray()
    clear(place)
    counts = Counter({" ".join(key).strip(): n for key, n in ground.counts.items()})
    return Part(counts, ground.faults, passed, ground.peak_kib, ground.slowest)


class Loading:
    """A server with a healthy adapter, and what became of the others."""

    def __init__(self, server: Server, directory: Path, seed: int) -> None:
        self.server, self.http = server, server.client()
        self.place, self.seed = directory / "mutants", seed
        self.draft = Draft.of(directory / "healthy")
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds: list[float] = []
        engine = engine_process(server)
        (self.engine,) = (each for each in descendants(server.process.pid) if each[0] == engine)
        self.watched = {"server": server.process.pid, "engine": engine}
        self.before = self.peaks()

    def peaks(self) -> dict[str, int]:
        """MiB at most of the server and of its engine."""
        return {name: peak_bytes(pid) >> 20 for name, pid in self.watched.items()}

    def load(self, number: int) -> None:
        source, how = mutant(self.draft, self.seed, number, self.place / str(number))
        began, key = time.monotonic(), f"m{number}"
        answer = self.http.post(f"/models/{key}", json={"source": str(source)})
        outcome = "" if answer.is_success else f"refused {answer.json()['code']}"
        if answer.is_success:
            status, tokens = completion(self.http, key, PROMPTS[0])
            outcome = "served" if status == 200 and len(tokens) == TOKENS else f"answered {status}"
            if outcome != "served":
                self.faults.append(f"{number}: {outcome} {tokens}: {how}")
            gone = self.http.delete(f"/models/{key}")
            if not gone.is_success:
                self.faults.append(f"{number}: removal {gone.status_code} {gone.text}: {how}")
        elif answer.status_code >= 500:
            self.faults.append(f"{number}: {answer.status_code} {answer.text}: {how}")
        self.outcomes[outcome] += 1
        self.seconds.append(time.monotonic() - began)
        shutil.rmtree(self.place / str(number))

    def look(self) -> None:
        """Whether the engine is the one that it was, and what the two have held."""
        if not alive([self.engine]):
            raise SystemExit(f"the engine has ended; until then: {self.faults}")
        for name, most in self.peaks().items():
            if most > self.before[name] + GROWTH_MIB:
                self.faults.append(f"{name} had {self.before[name]} MiB, and {most} MiB since")


@dataclass
class GoodTraffic:
    """Clients of the healthy adapter and the base, who know what they must be answered."""

    server: Server
    faults: list[str]
    wanted: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    compared: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def __post_init__(self) -> None:
        with self.server.client() as http:
            for key, prompt in product(GOOD_KEYS, PROMPTS):
                self.wanted[key, prompt] = completion(http, key, prompt)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """One client for each key, one request after the other, until the block ends."""
        over = Event()
        clients = [Thread(target=self._client, args=(key, over)) for key in GOOD_KEYS]
        for each in clients:
            each.start()
        try:
            yield
        finally:
            over.set()
            for each in clients:
                each.join()

    def _client(self, key: str, over: Event) -> None:
        with self.server.client() as http:
            for prompt in cycle(PROMPTS):
                if over.is_set():
                    return
                began = time.monotonic()
                try:
                    found = completion(http, key, prompt)
                except (httpx.HTTPError, ValueError) as error:
                    found = (0, repr(error))
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.compared[key] += 1
                if found != (wanted := self.wanted[key, prompt]):
                    self.faults.append(f"{key} answered {prompt!r} {found}, before {wanted}")


def completion(http: httpx.Client, key: str, prompt: str) -> tuple[int, Any]:
    """Status, and the tokens of an answer or the error."""
    body = {"model": key, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = http.post("/v1/completions", json={**body, "return_token_ids": True})
    tree = answer.json()
    return answer.status_code, tree["choices"][0]["token_ids"] if answer.is_success else tree


def load(directory: Path, seconds: float, after: int) -> int:
    checked = json.loads((directory / "checked.json").read_text())
    others = set(range(0, checked["inputs"], 40)) - set(checked["passed"])
    chosen = sorted(each for each in {*checked["passed"], *others} if each > after)
    began, sent = time.monotonic(), 0
    outside = directory / OUTSIDE
    outside.write_text(WORDS)
    port = free_port()
    config = directory / "hostile.yaml"
    config.write_text(yaml.safe_dump(_served(directory, port)))
    arguments = (str(config), "--data-dir", str(directory / "data"))
    with serving(*arguments, directory=directory, port=port) as server:
        loading = Loading(server, directory, checked["seed"])
        good = GoodTraffic(server, loading.faults)
        there = {*os.listdir(directory), "mutants"}
        with good.flowing():
            for sent, number in enumerate(chosen, start=1):
                loading.load(number)
                if sent % BATCH == 0:
                    loading.look()
                    print(sent, f"{time.monotonic() - began:.0f} s", loading.faults, flush=True)
                if time.monotonic() - began > seconds:
                    break
        loading.look()
        faults = [*loading.faults, *(f"stray {name}" for name in {*os.listdir(directory)} - there)]
        faults += strays(directory / "data" / "store", outside)
        report = {
            "sent": sent,
            "the last": chosen[sent - 1],
            "of": len(chosen),
            "outcomes": dict(loading.outcomes.most_common()),
            "faults": faults,
            "good answers compared": dict(good.compared),
            "slowest good answer, s": round(good.slowest, 1),
            "slowest load, s": round(max(loading.seconds), 1),
            "median load, s": round(median(loading.seconds), 2),
            "peak MiB before": loading.before,
            "peak MiB after": loading.peaks(),
            "seconds": round(time.monotonic() - began),
        }
    return _written(directory / "loaded.json", report, bool(faults))


def _served(directory: Path, port: int) -> dict[str, Any]:
    return {
        "base": {"model": str(directory / "base"), "key": "base"},
        "group": {"members": [{"key": "healthy", "source": str(directory / "healthy")}]},
        "engine": {**_LIMITS, "kv_cache_memory_bytes": 2**27},
        "server": {"port": port, "adapter_roots": [str(directory / "mutants")], "drain_seconds": 5},
    }


def _written(path: Path, report: dict[str, Any], failed: bool) -> int:
    path.write_text(json.dumps(report, indent=1))
    print(json.dumps({name: value for name, value in report.items() if name != "passed"}, indent=1))
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("form", choices=("check", "load"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=7200, help="when loading ends")
    parser.add_argument("--after", type=int, default=-1, help="the last that another load sent")
    given = parser.parse_args()
    directory = given.directory.absolute()
    if given.form == "load":
        return load(directory, given.seconds, given.after)
    return check(directory, given.count, given.seed)


if __name__ == "__main__":
    sys.exit(main())
