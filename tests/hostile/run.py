"""The long form: ten thousand mutants through the checks, then those that pass into an engine.

    python -m tests.hostile.run check DIRECTORY --count 10000 --seed 1     half an hour
    python -m tests.hostile.run load DIRECTORY                             a running tiny engine

`check` forks a process for each mutant, bounded in memory and time, and writes `checked.json`.
`load` sends those that passed, and some of the others, through the HTTP door; it compares a
healthy adapter's tokens after every batch, and writes `loaded.json`. Both end with 1 on a fault.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from stacked.store.disk import clear
from tests import tiny
from tests.hostile.draft import Draft
from tests.hostile.ground import Ground
from tests.hostile.mutants import mutant
from tests.serving import Server, free_port, serving

BATCH = 25
PART = 250
WORKERS = 3
TARGETS = ("q_proj", "v_proj", "down_proj")
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
        self.tokens = self.answer("healthy")
        self.processes = self.engine()

    def answer(self, key: str) -> tuple[int, Any]:
        body = {"model": key, "prompt": "The quick brown fox", "max_tokens": 8, "temperature": 0}
        answer = self.http.post("/v1/completions", json={**body, "return_token_ids": True})
        tree = answer.json()
        return answer.status_code, tree["choices"][0]["token_ids"] if answer.is_success else tree

    def engine(self) -> list[str]:
        """The processes below the server's, which live as long as the engine does."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.server.process.pid)],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        return [line.split()[0] for line in listed if "VLLM" in line or "spawn_main" in line]

    def peaks(self) -> dict[str, int]:
        """MiB at most of the server and of each process of the engine."""
        pids = {"server": str(self.server.process.pid)}
        pids |= {f"engine {at}": pid for at, pid in enumerate(self.processes)}
        found = {}
        for name, pid in pids.items():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found[name] = next(int(line.split()[1]) >> 10 for line in lines if "VmHWM" in line)
        return found

    def load(self, number: int) -> None:
        source, how = mutant(self.draft, self.seed, number, self.place / str(number))
        answer = self.http.post(f"/models/m{number}", json={"source": str(source)})
        outcome = "" if answer.is_success else f"refused {answer.json()['code']}"
        if answer.is_success:
            status, tokens = self.answer(f"m{number}")
            outcome = "served" if status == 200 and len(tokens) == 8 else f"answered {status}"
            if outcome != "served":
                self.faults.append(f"{number}: {outcome} {tokens}: {how}")
            gone = self.http.delete(f"/models/m{number}")
            if not gone.is_success:
                self.faults.append(f"{number}: removal {gone.status_code} {gone.text}: {how}")
        elif answer.status_code >= 500:
            self.faults.append(f"{number}: {answer.status_code} {answer.text}: {how}")
        self.outcomes[outcome] += 1
        shutil.rmtree(self.place / str(number))

    def compare(self) -> None:
        if (now := self.answer("healthy")) != self.tokens:
            self.faults.append(f"the healthy adapter answered {now}, before {self.tokens}")
        if (there := self.engine()) != self.processes:
            self.faults.append(f"the engine was {self.processes} and is {there}")


def load(directory: Path, seconds: float) -> int:
    checked = json.loads((directory / "checked.json").read_text())
    others = set(range(0, checked["inputs"], 40)) - set(checked["passed"])
    chosen, began, sent = sorted({*checked["passed"], *others}), time.monotonic(), 0
    port = free_port()
    tree = {
        "base": {"model": str(directory / "base"), "key": "base"},
        "group": {"members": [{"key": "healthy", "source": str(directory / "healthy")}]},
        "engine": {**_LIMITS, "kv_cache_memory_bytes": 2**27},
        "server": {"port": port, "adapter_roots": [str(directory)], "drain_seconds": 5},
    }
    config = directory / "hostile.yaml"
    config.write_text(yaml.safe_dump(tree))
    arguments = (str(config), "--data-dir", str(directory / "data"))
    with serving(*arguments, directory=directory, port=port) as server:
        loading = Loading(server, directory, checked["seed"])
        before = loading.peaks()
        for sent, number in enumerate(chosen, start=1):
            loading.load(number)
            if sent % BATCH == 0:
                loading.compare()
            if sent % 100 == 0:
                print(sent, f"{time.monotonic() - began:.0f} s", loading.faults, flush=True)
            if time.monotonic() - began > seconds:
                break
        loading.compare()
        report = {
            "sent": sent,
            "of": len(chosen),
            "outcomes": dict(loading.outcomes.most_common()),
            "faults": loading.faults,
            "comparisons of the healthy adapter": sent // BATCH + 1,
            "peak MiB before": before,
            "peak MiB after": loading.peaks(),
            "seconds": round(time.monotonic() - began),
        }
    return _written(directory / "loaded.json", report, bool(loading.faults))


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
    given = parser.parse_args()
    directory = given.directory.absolute()
    if given.form == "load":
        return load(directory, given.seconds)
    return check(directory, given.count, given.seed)


if __name__ == "__main__":
    sys.exit(main())
