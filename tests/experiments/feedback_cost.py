"""What feedback at volume costs requests: `python -m tests.experiments.feedback_cost --rate 200`.

One server. Clients send requests to an experiment's key without a pause, each of another unit; in
half of the blocks, values for their answers are sent too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import httpx

from stacked.bases import default_data_dir
from stacked.bench.figures import quantile
from stacked.bench.server import serving
from stacked.bench.subject import Requested, prepare
from stacked.serving.names import UNIT_HEADER
from tests.experiments.cost import design, stream
from tests.fairness.measure import Quiet

_METRICS = 5  # values of each answer


class Load:
    """Clients of one server; the answers' ids, and their seconds to the first token."""

    def __init__(self, http: httpx.AsyncClient, keys: list[str]) -> None:
        self._http, self._keys = http, keys
        self.ids: deque[str] = deque(maxlen=1000)
        self.firsts: list[float] = []
        self.posts: list[float] = []
        """Seconds of each piece of feedback."""

    async def client(self, at: int) -> None:
        for number in range(1_000_000):
            seed = at * 1_000_000 + number
            key, unit = f"tried-{self._keys[at % len(self._keys)]}", {UNIT_HEADER: f"user-{seed}"}
            times, id = await stream(self._http, key, seed, headers=unit)
            self.firsts.append(times[0])
            self.ids.append(id)

    async def feedback(self, rate: float, seconds: float, items: int) -> None:
        """So many values a second, some in a request; none is waited for before the next."""
        begun, tasks = time.perf_counter(), []
        for number in range(0, int(rate * seconds), items):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self._send(range(number, number + items))))
        await asyncio.gather(*tasks)

    async def _send(self, numbers: range) -> None:
        ids = random.sample([*self.ids], min(len(numbers), len(self.ids)))
        values = [
            {"id": id, "metric": f"m{number % _METRICS}", "value": number % 2 == 0}
            for number, id in zip(numbers, ids, strict=False)
        ]
        began = time.perf_counter()
        answer = await self._http.post("/v1/feedback", json={"items": values})
        answer.raise_for_status()
        self.posts.append(time.perf_counter() - began)


@asynccontextmanager
async def loaded(url: str, keys: list[str], clients: int) -> AsyncIterator[Load]:
    limits = httpx.Limits(max_connections=clients + 64)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        load = Load(http, keys)
        running = [asyncio.create_task(load.client(at)) for at in range(clients)]
        try:
            yield load
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def run(url: str, keys: list[str], given: argparse.Namespace) -> None:
    async with loaded(url, keys, given.clients) as load:
        await asyncio.sleep(5)  # the first requests are slower, and there are ids to speak of
        for number in range(2 * given.blocks):
            on = number % 4 in (1, 2)  # off, on, on, off: what drifts is no difference
            load.firsts.clear()
            load.posts.clear()
            began = time.perf_counter()
            sending = (given.rate, given.seconds, given.items)
            await (load.feedback(*sending) if on else asyncio.sleep(given.seconds))
            took = time.perf_counter() - began
            first = median(load.firsts) * 1000
            print(f"{len(load.firsts) / took:6.1f} requests/s, median first token {first:6.1f} ms")
            if on:
                posts = [each * 1000 for each in load.posts]
                typical, slow = median(posts), quantile(posts, 0.99)
                print(f"  with {given.items * len(posts) / took:.0f} values/s, ", end="")
                print(f"median {typical:.1f} ms, 99 % within {slow:.1f} ms", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--base", default="tiny")
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--rate", type=float, default=200)
    options.add_argument("--items", type=int, default=1, help="values of each request")
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--seconds", type=float, default=15, help="of each block")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wanted = Requested(given.base, engine={"max_model_len": 512})
        subject = prepare(wanted, 4, place, default_data_dir(), Quiet())
        tree, keys = subject.tree(subject.options()), list(subject.members)
        tree["group"] |= design(keys, 1, 1).model_dump(mode="json", exclude_defaults=True)
        with serving(tree, place / "server", place / "data") as url:
            asyncio.run(run(url, keys, given))


if __name__ == "__main__":
    main()
