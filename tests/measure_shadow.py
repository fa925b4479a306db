"""What shadow traffic costs a first token: `python -m tests.measure_shadow tiny --rate 6`.

One engine in this process, requests at a rate or from clients that wait for their answers, with and
without shadows in turns. In a round both sides have the same prompts at the same times, and the
ratio's bounds are a bootstrap of these pairs. A machine's own noise is often larger than what is
looked for; so the requests with shadows are also compared among themselves, those that met a copy
and all others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import stacked
from stacked.api.gateway import Gateway
from stacked.bases import default_data_dir
from stacked.bench.subject import Requested, config_of, prepare
from stacked.config import Design, ShadowConfig, ShadowLimits
from stacked.service import Service
from stacked.serving.shadow import Shadow
from tests.bench.fake import Untold
from tests.experiments.cost import ratio

_WARM_SECONDS = 10.0
_SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/completions",
    "raw_path": b"/v1/completions",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


class Row(NamedTuple):
    """One request: its milliseconds to the first byte, and whether a copy ran before that."""

    first: float
    met: bool


@dataclass
class Load:
    """Requests to a service, each with a prompt of its own."""

    service: Service
    keys: list[str]
    prompt: int
    output: int
    rng: random.Random = field(default_factory=random.Random)
    number: int = 0

    def begin(self, seed: int) -> None:
        """From here on the same requests as for every other begin with this seed."""
        self.rng.seed(seed)
        self.number = 0

    async def one(self) -> Row:
        self.number += 1
        body = {
            "model": self.keys[self.number % len(self.keys)],
            "prompt": [self.rng.randrange(100, 400) for _ in range(self.prompt)],
            "max_tokens": self.output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
        shadow, gone = self.service.shadow, asyncio.Event()
        first: list[float] = []
        began, met = time.perf_counter(), bool(shadow._running)

        async def receive() -> Any:
            if not messages:
                await gone.wait()
            return messages.pop()

        async def send(message: Any) -> None:
            nonlocal met
            assert message.get("status", 200) == 200
            if message.get("body") and not first:
                first.append(time.perf_counter() - began)
                met = met or bool(shadow._running)

        app: Any = Gateway(self.service, None)  # type: ignore[arg-type]
        await app(_SCOPE, receive, send)
        return Row(first[0] * 1000, met)

    async def block(self, seconds: float, rate: float, clients: int) -> list[Row]:
        end = time.perf_counter() + seconds

        async def client() -> list[Row]:
            rows = []
            while time.perf_counter() < end:
                rows.append(await self.one())
            return rows

        if clients:
            answered = await asyncio.gather(*(client() for _ in range(clients)))
            return [row for rows in answered for row in rows]
        tasks, due = [], end - seconds
        for _ in range(int(seconds * rate)):
            due += self.rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self.one()))
        return await asyncio.gather(*tasks)


async def measure(given: argparse.Namespace, directory: Path) -> None:
    engine = {"max_model_len": 512, **json.loads(given.engine)}
    requested = Requested(given.base, (), 8, "attention", engine)
    subject = prepare(requested, 4, directory, default_data_dir(), Untold())
    keys = list(subject.members)
    pairs = zip(keys, keys[1:] + keys[:1], strict=True)
    shadows = tuple(ShadowConfig(key=key, to=to, percent=20) for key, to in pairs)
    async with stacked.open(config_of(subject), data_dir=directory / "data") as stack:
        service, rows = stack.service, {True: list[Row](), False: list[Row]()}
        load = Load(service, keys, given.prompt, given.output)
        live, plain = service.vllm.live, service.vllm.live.routing
        ratios, copies = [], Counter[str]()
        for number in range(given.rounds + 1):  # the first warms up
            medians = {}
            for on in (True, False) if number % 2 else (False, True):
                service.shadow = Shadow(ShadowLimits())
                live.begin(replace(plain, design=Design(shadow=shadows if on else ())))
                load.begin(given.seed + number)
                seconds = given.seconds if number else min(_WARM_SECONDS, given.seconds)
                found = await load.block(seconds, given.rate, given.clients)
                tallies = service.shadow.findings.tallies.values()
                if number:
                    rows[on] += found
                    medians[on] = median(row.first for row in found)
                    for each in tallies:
                        copies.update({"copies": each.copies, **each.dropped})
                await service.shadow.close()
            if number:
                ratios.append(medians[True] / medians[False])
                print(f"{given.base}: {len(rows[False])} requests without shadows", end="")
                print(f", {len(rows[True])} with; copies: {dict(copies)}")
                show(rows[True], rows[False], ratios)
        live.begin(plain)


def show(shadowed: list[Row], plain: list[Row], ratios: list[float]) -> None:
    met = [row.first for row in shadowed if row.met]
    clean = [row.first for row in shadowed if not row.met]
    with_, without = median(row.first for row in shadowed), median(row.first for row in plain)
    print(f"first token, median ms: {without:.1f} without, {with_:.1f} with: {with_ / without:.3f}")
    print(f"with over without, by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    if len(shadowed) == len(plain):  # at a rate, both sides have the same requests
        pairs = [(one.first, other.first) for one, other in zip(shadowed, plain, strict=True)]
        print(f"with over without, of pairs of requests: {ratio(pairs, np.median)}")
    print(f"with shadows, {len(met)} of {len(shadowed)} requests met a copy")
    if met and clean:
        print(
            f"median ms of those {median(met):.1f}, of the others {median(clean):.1f}: all over "
            f"the others {with_ / median(clean):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--clients", type=int, default=0, help="so many, instead of a rate")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="other requests")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each side in each round")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--engine", default="{}", help="engine options, as JSON")
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(measure(parser.parse_args(), Path(place)))
