"""What an experiment costs on the real engine: its key against its arm's own, request by request.

    python -m tests.experiments.cost --base tiny --clients 8 --requests 12000

One server has both keys and the clients take turns with them, so that a busy machine is as busy for
each. Then the weights change under the same load. It prints ratios with 95 % bounds (bootstrap),
and what a change took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from stacked.bases import default_data_dir
from stacked.bench.server import serving
from stacked.bench.subject import Requested, Subject, prepare
from stacked.bench.updates import Update, Updater, phase_table
from stacked.client import Client, entries_of
from stacked.config import ArmConfig, Design, ExperimentConfig
from stacked.serving.names import UNIT_HEADER
from tests.fairness.measure import Quiet

UNIT = {UNIT_HEADER: "2f1c9d3e-8a4b-4c1d-9e6f-0a1b2c3d4e5f"}
TOKENS = 32

Pair = tuple[float, float]
"""Seconds of one request to its first token, and to its end."""


def design(keys: Sequence[str], key_weight: float, base_weight: float) -> Design:
    """An experiment for each key, of its adapter and the base."""
    experiments = []
    for key in keys:
        arms = (ArmConfig(key=key, weight=key_weight), ArmConfig(key="base", weight=base_weight))
        experiments.append(ExperimentConfig(key=f"tried-{key}", arms=arms))
    return Design(experiments=tuple(experiments))


async def ask(http: httpx.AsyncClient, key: str, seed: int) -> Pair:
    chance = random.Random(seed)
    prompt = [chance.randrange(100, 250) for _ in range(TOKENS)]
    length = {"max_tokens": TOKENS, "min_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    body = {"model": key, "prompt": prompt, "stream": True, **length}
    began = time.perf_counter()
    first = 0.0
    async with http.stream("POST", "/v1/completions", json=body, headers=UNIT) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


async def in_turn(
    url: str, keys: Sequence[str], clients: int, requests: int
) -> tuple[list[Pair], list[Pair]]:
    """Of the experiments' keys, and of the arms' own."""
    tried: list[Pair] = []
    plain: list[Pair] = []
    numbers = iter(range(requests))

    async def client(http: httpx.AsyncClient, at: int) -> None:
        for number in numbers:
            at += 1
            pair = at // 2
            key = keys[pair % len(keys)]
            if at % 2 == pair % 2:
                plain.append(await ask(http, key, number))
            else:
                tried.append(await ask(http, f"tried-{key}", number))

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for key in keys:  # the first of each is slower than the others
            await ask(http, key, requests)
            await ask(http, f"tried-{key}", requests)
        await asyncio.gather(*(client(http, at) for at in range(clients)))
    return tried, plain


@asynccontextmanager
async def streams(url: str, keys: Sequence[str], clients: int) -> AsyncIterator[None]:
    """Clients of the experiments' keys, while the block runs."""

    async def client(http: httpx.AsyncClient, at: int) -> None:
        for number in range(1_000_000):
            await ask(http, f"tried-{keys[at % len(keys)]}", at * 1_000_000 + number)

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        running = [asyncio.create_task(client(http, at)) for at in range(clients)]
        try:
            yield
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def changes(url: str, keys: Sequence[str], count: int) -> Iterator[Update]:
    """Updates from 50/50 to 60/40 and back."""
    with Client(url) as client:
        served = entries_of(client.group(client.status()["groupId"]))
        groups = []
        for weights in ((50, 50), (60, 40)):
            metadata = design(keys, *weights).as_metadata()
            items = [{"key": name, "value": value} for name, value in metadata.items()]
            made = client.create_group("weights", served, details={"customMetadataList": items})
            groups.append(made["id"])
        updater = Updater(client)
        for number in range(count):
            yield updater.go(groups[number % 2])
            time.sleep(0.1)


def ratio(ours: Sequence[float], theirs: Sequence[float], of: Callable[..., float]) -> str:
    chance = random.Random(1)
    found = sorted(
        of(chance.choices(ours, k=len(ours))) / of(chance.choices(theirs, k=len(theirs)))
        for _ in range(1000)
    )
    return f"{of(ours) / of(theirs):.4f} ({found[25]:.4f} to {found[975]:.4f})"


async def run(subject: Subject, url: str, clients: int, requests: int, updates: int) -> None:
    keys = list(subject.members)
    tried, plain = await in_turn(url, keys, clients, requests)
    firsts, whole = ([[pair[at] for pair in side] for side in (tried, plain)] for at in (0, 1))
    print(f"{clients} clients, {len(tried)} and {len(plain)} requests")
    print(f"first token, median: {ratio(*firsts, statistics.median)}")
    print(f"whole request, mean: {ratio(*whole, statistics.fmean)}")
    async with streams(url, keys, clients):
        done = await asyncio.to_thread(lambda: list(changes(url, keys, updates)))
    print(f"{updates} changes of weights: {json.dumps(phase_table(done), indent=1)}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--base", default="tiny")
    options.add_argument("--adapters", type=int, default=4)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--requests", type=int, default=12_000)
    options.add_argument("--updates", type=int, default=40)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wanted = Requested(given.base, engine={"max_model_len": 512})
        subject = prepare(wanted, given.adapters, place, default_data_dir(), Quiet())
        tree = subject.tree(subject.options())
        # The base never wins, and costs its hash: both keys get the same adapter.
        experiments = design(list(subject.members), 1e6, 1e-6)
        tree["group"] |= experiments.model_dump(mode="json", exclude_defaults=True)
        with serving(tree, place / "server", place / "data") as url:
            asyncio.run(run(subject, url, given.clients, given.requests, given.updates))


if __name__ == "__main__":
    main()
