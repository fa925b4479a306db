"""What fairness costs and gives on the real engine: two servers, with it and without, in turns.

    python -m tests.fairness.measure --base tiny --rounds 3 --out FILE.json

Three loads, all of them streams without pause: a newcomer beside one key that saturates the engine,
more adapters than slots, and what `stacked bench online` sends. It prints every round's figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from stacked.bases import default_data_dir
from stacked.bench.server import serving
from stacked.bench.subject import Requested, Subject, prepare
from stacked.steps import Silent

SIDES = {
    "on": {"server": {"fairness": {"enabled": True}}, "policy": "priority"},
    "off": {"server": {"fairness": {"enabled": False}}, "policy": "fcfs"},
}

# The newcomer's answers, in tokens, and its longest pause.
_BRIEF = 8
_PAUSE_SECONDS = 0.5


class Quiet(Silent):
    """A benchmark's progress that is not shown."""

    def begin(self, text: str) -> None: ...

    def fraction(self, done: float) -> None: ...


@dataclass
class Streams:
    """What clients saw: seconds to first tokens, mean ones between tokens, answers by key."""

    firsts: dict[str, list[float]] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Lengths:
    prompt: int
    answer: int
    vary: bool
    """Whether answers are from a quarter of that on."""


class Clients:
    """Clients of one server, each of which sends one request after another."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, lengths: Lengths, *, stream: bool = True
    ) -> None:
        self._session = session
        self._stream = stream
        self.url = url
        self._url = f"{url}/v1/completions"
        self.lengths = lengths

    @property
    def plain(self) -> Clients:
        """The same, without streams."""
        return Clients(self._session, self.url, self.lengths, stream=False)

    async def one(self, key: str, chance: random.Random, seen: Streams) -> None:
        most = self.lengths.answer
        body = {
            "model": key,
            "prompt": [chance.randrange(100, 250) for _ in range(self.lengths.prompt)],
            "max_tokens": chance.randrange(most // 4, most) if self.lengths.vary else most,
            "ignore_eos": True,
            "temperature": 0,
            "stream": self._stream,
        }
        began = first = last = time.perf_counter()
        events = 0
        try:
            async with self._session.post(self._url, json=body) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    last = time.perf_counter()
                    if not events:
                        seen.firsts.setdefault(key, []).append(last - began)
                        first = last
                    events += 1
            if events > 1:
                seen.gaps.append((last - first) / (events - 1))
            seen.answers[key] = seen.answers.get(key, 0) + 1
        finally:
            if not events and self._stream:  # who still waits has waited, too
                seen.firsts.setdefault(key, []).append(time.perf_counter() - began)

    @contextlib.asynccontextmanager
    async def saturating(
        self, keys: Callable[[int, random.Random], str], clients: int, seed: int = 0
    ) -> AsyncIterator[Streams]:
        """So many clients within the block; `keys` names the key of a client's next request."""
        seen, began = Streams(), time.perf_counter()

        async def client(number: int) -> None:
            chance = random.Random(f"{seed}-{number}")
            while True:
                await self.one(keys(number, chance), chance, seen)

        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        try:
            yield seen
        finally:
            seen.seconds = time.perf_counter() - began
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise AssertionError(ended)

    async def some(self, key: str, count: int, seed: int, pause: float = 0.0) -> Streams:
        """One client that sends so many requests, each after a pause of at most so long."""
        seen, chance = Streams(), random.Random(f"some-{seed}")
        for _ in range(count):
            await asyncio.sleep(chance.uniform(0, pause))
            await self.one(key, chance, seen)
        return seen

    async def queued(self, key: str) -> tuple[float, float]:
        """The seconds that requests of a key have waited for their turns so far; their number."""
        async with self._session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        found = [
            sum(
                float(line.split()[-1])
                for line in lines
                if line.startswith(name) and f'key="{key}"' in line
            )
            for name in ("stacked_queue_seconds_sum", "stacked_queue_seconds_count")
        ]
        return found[0], found[1]


def one_alone(url: str, lengths: Lengths, count: int, seed: int) -> Streams:
    """One client of `a1` in a process of its own: it waits for the server, and not for the many."""

    async def work() -> Streams:
        async with aiohttp.ClientSession() as session:
            clients = Clients(session, url, replace(lengths, answer=_BRIEF, vary=False))
            return await clients.some("a1", count, seed, _PAUSE_SECONDS)

    return asyncio.run(work())


async def newcomer(clients: Clients, many: int, requests: int, seed: int) -> dict[str, float]:
    """One client of `a1`, alone and beside `many` of `a0`; milliseconds.

    A step is the time between two tokens of the one. The many do not stream, so that the server and
    these clients leave the cores to the engine. The one pauses, as it would otherwise come in step
    with the many, whose answers are as long.
    """
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:

        async def one(seed: int) -> Streams:
            work = (one_alone, clients.url, clients.lengths, requests, seed)
            return await loop.run_in_executor(process, *work)

        alone = await one(seed)
        async with clients.plain.saturating(lambda *_: "a0", many, seed):
            await clients.some("a0", 3, seed)  # until all of them run
            waited, count = await clients.queued("a1")
            beside = await one(seed + 1)
            more, all_of_them = await clients.queued("a1")
    step = statistics.median(beside.gaps)
    before, after = (statistics.median(each.firsts["a1"]) for each in (alone, beside))
    return {
        "alone_ms": before * 1e3,
        "beside_ms": after * 1e3,
        "step_ms": step * 1e3,
        "bound_ms": (2 * before + step) * 1e3,
        "queued_ms": (more - waited) / max(1.0, all_of_them - count) * 1e3,
    }


async def crowd(clients: Clients, keys: Sequence[str], each: int, seconds: float, seed: int) -> Any:
    """`each` clients on every key: the longest wait, and the shares of the keys."""
    async with clients.saturating(
        lambda number, _: keys[number % len(keys)], each * len(keys), seed
    ) as seen:
        await asyncio.sleep(seconds)
    answers = [seen.answers.get(key, 0) for key in keys]
    waits = {key: max(seen.firsts.get(key, [seconds])) for key in keys}
    return {
        "longest_wait_s": max(waits.values()),
        "base_longest_wait_s": waits["base"],
        "least_answers": min(answers),
        "most_answers": max(answers),
        "answers_per_s": sum(answers) / seen.seconds,
        "first_ms": statistics.median([t for key in keys for t in seen.firsts.get(key, ())]) * 1e3,
    }


async def mixed(
    clients: Clients, keys: Sequence[str], many: int, seconds: float, seed: int
) -> dict[str, float]:
    """`many` clients, whose every request is to any of the keys."""
    async with clients.saturating(lambda _, chance: chance.choice(keys), many, seed) as seen:
        await asyncio.sleep(seconds)
    firsts = [each for values in seen.firsts.values() for each in values]
    return {
        "answers_per_s": sum(seen.answers.values()) / seen.seconds,
        "first_ms": statistics.median(firsts) * 1e3,
        "longest_wait_s": max(firsts),
    }


async def measure(urls: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every load on each side, in turns."""
    rows: list[dict[str, Any]] = []
    lengths = Lengths(options.prompt_tokens, options.output_tokens, options.vary)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        sides = {side: Clients(session, url, lengths) for side, url in urls.items()}
        few = ["base", *(f"a{at}" for at in range(options.slots - 1))]
        all_keys = ["base", *(f"a{at}" for at in range(options.adapters))]
        seconds = options.seconds
        loads: dict[str, Callable[[Clients, int], Any]] = {
            "newcomer-16": lambda c, s: newcomer(c, 16, options.requests, s),
            "newcomer-64": lambda c, s: newcomer(c, 64, options.requests, s),
            "crowd": lambda c, s: crowd(c, all_keys, options.each, 2 * seconds, s),
            "mixed-16": lambda c, s: mixed(c, few, 16, seconds, s),
            "mixed-64": lambda c, s: mixed(c, few, 64, seconds, s),
            "mixed-64-slots": lambda c, s: mixed(c, all_keys, 64, seconds, s),
        }
        for clients in sides.values():
            await clients.some("a0", 3, 0)
        for at in range(options.rounds):
            for name in options.loads or loads:
                for side in (list(sides), list(sides)[::-1])[at % 2]:
                    row = await loads[name](sides[side], at)
                    rows.append({"load": name, "side": side, "round": at, **row})
                    shown = " ".join(f"{key}={value:.3g}" for key, value in row.items())
                    print(f"{name:15} {side:4} {at} {shown}", flush=True)
                    await asyncio.sleep(1.5)
    return rows


def tree_of(subject: Subject, side: str, options: argparse.Namespace) -> dict[str, Any]:
    engine = subject.options() | {"scheduling_policy": SIDES[side]["policy"]}
    return {**subject.tree(engine), "server": SIDES[side]["server"]}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the servers end with it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--adapters", type=int, default=12)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seats", type=int, default=0, help="max_num_seqs; 0: vLLM's own")
    parser.add_argument("--each", type=int, default=3, help="clients of each key in `crowd`")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--vary", action="store_true", help="answers of many lengths")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="*", default=list(SIDES))
    parser.add_argument("--loads", nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    engine: dict[str, Any] = {"max_loras": options.slots}
    if options.seats:
        engine["max_num_seqs"] = options.seats
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        directory, tell = Path(place), Quiet()
        requested = Requested(options.base, rank=8, engine=engine)
        subject = prepare(requested, options.adapters, directory, default_data_dir(), tell)
        urls = {}
        for side in options.sides:
            tree = tree_of(subject, side, options)
            server = serving(tree, directory / side, directory / f"data-{side}")
            urls[side] = stack.enter_context(server)
        rows = asyncio.run(measure(urls, options))
    if options.out:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
