"""What an experiment costs on the real engine: its key against its arm's own, request by request.

    python -m tests.experiments.cost --base tiny --clients 8 --requests 12000

One server has both keys. A client sends each prompt to both, one after the other, so that a busy
machine is as busy for each. Then the weights change under the same load. It prints ratios with 95 %
bounds, a bootstrap of these pairs, and what a change took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

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

Times = tuple[float, float]
"""Seconds of one request to its first token, and to its end."""

Pair = tuple[Times, Times]
"""Of the experiment's key, and of the arm's own."""


def design(keys: Sequence[str], key_weight: float, base_weight: float) -> Design:
    """An experiment for each key, of its adapter and the base."""
    experiments = []
    for key in keys:
        arms = (ArmConfig(key=key, weight=key_weight), ArmConfig(key="base", weight=base_weight))
        experiments.append(ExperimentConfig(key=f"tried-{key}", arms=arms))
    return Design(experiments=tuple(experiments))


async def ask(http: httpx.AsyncClient, key: str, seed: int, answer: int = TOKENS) -> Times:
    return (await stream(http, key, seed, answer))[0]


async def stream(
    http: httpx.AsyncClient,
    key: str,
    seed: int,
    answer: int = TOKENS,
    headers: Mapping[str, str] = UNIT,
) -> tuple[Times, str]:
    """A request's times, and its id."""
    chance = random.Random(seed)
    prompt = [chance.randrange(100, 250) for _ in range(TOKENS)]
    length = {"max_tokens": answer, "min_tokens": answer, "ignore_eos": True, "temperature": 0}
    body = {"model": key, "prompt": prompt, "stream": True, **length}
    began = time.perf_counter()
    first = 0.0
    async with http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for _ in response.aiter_raw():
            first = first or time.perf_counter() - began
    return (first, time.perf_counter() - began), response.headers["opc-request-id"]


async def in_turn(url: str, keys: Sequence[str], given: argparse.Namespace) -> list[Pair]:
    pairs: list[Pair] = []
    answer, end = given.answer, time.perf_counter() + given.seconds
    numbers = iter(range(given.requests // 2))

    async def pair(http: httpx.AsyncClient, number: int) -> Pair:
        key = keys[number // 2 % len(keys)]
        if number % 2:
            plain = await ask(http, key, number, answer)
            return await ask(http, f"tried-{key}", number, answer), plain
        return await ask(http, f"tried-{key}", number, answer), await ask(http, key, number, answer)

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            if time.perf_counter() > end:
                return
            pairs.append(await pair(http, number))

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for number in range(2 * len(keys)):  # the first of each is slower than the others
            await pair(http, number)
        await asyncio.gather(*(client(http) for _ in range(given.clients)))
    return pairs


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


def ratio(pairs: Sequence[tuple[float, float]], of: Callable[..., Any]) -> str:
    """`of` the experiments' keys over `of` the arms'."""
    ours, theirs = np.array(pairs).T
    chance = np.random.default_rng(1)
    found = []
    for _ in range(1000):
        chosen = chance.integers(0, len(ours), len(ours))
        found.append(of(ours[chosen]) / of(theirs[chosen]))
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{of(ours) / of(theirs):.4f} ({low:.4f} to {high:.4f})"


async def run(subject: Subject, url: str, given: argparse.Namespace) -> None:
    keys = list(subject.members)
    pairs = await in_turn(url, keys, given)
    firsts, whole = ([(a[at], b[at]) for a, b in pairs] for at in (0, 1))
    print(f"{given.clients} clients, {len(pairs)} pairs of requests")
    print(f"median ms of the arm's own: first token {1000 * median(b for _, b in firsts):.1f}")
    print(f"first token, median: {ratio(firsts, np.median)}")
    print(f"whole request, mean: {ratio(whole, np.mean)}")
    print(f"first token, mean without the slowest tenth: {ratio(firsts, _trimmed)}")
    print(f"whole request, mean without the slowest tenth: {ratio(whole, _trimmed)}")
    if not given.updates:
        return
    async with streams(url, keys, given.clients):
        done = await asyncio.to_thread(lambda: list(changes(url, keys, given.updates)))
    print(f"{given.updates} changes of weights: {json.dumps(phase_table(done), indent=1)}")


def _trimmed(values: Any) -> Any:
    """A machine's pauses are in the mean of all; in this one, what every request pays."""
    return np.sort(values)[: len(values) * 9 // 10].mean()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--base", default="tiny")
    options.add_argument("--adapters", type=int, default=4)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--requests", type=int, default=12_000)
    options.add_argument("--seconds", type=float, default=3600, help="no new requests after these")
    options.add_argument("--answer", type=int, default=TOKENS, help="tokens of each answer")
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
            asyncio.run(run(subject, url, given))


if __name__ == "__main__":
    main()
