"""Whether the time of a 404 says that a key exists: `python -m tests.api.timing [ROUNDS]`.

A caller who is held to some keys asks for another's key and for one that never was, in turn; the
medians and how often the one takes longer are printed. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.api.test_held import client_of, serving_held


async def main(rounds: int) -> None:
    names = {"another's": "other", "draining": "gone", "never was": "otter", "nor this": "ottir"}
    took: dict[str, list[float]] = {what: [] for what in names}
    async with serving_held() as held:
        with tempfile.TemporaryDirectory() as directory:
            async with client_of(held, Path(directory), "own") as client:
                for _ in range(rounds):
                    for what in random.sample(list(names), len(names)):
                        body = {"model": names[what], "prompt": "x"}
                        began = time.perf_counter()
                        answer = await client.post("/v1/completions", json=body)
                        took[what].append(time.perf_counter() - began)
                        assert answer.status_code == 404
    reference = took["never was"]
    for what, times in took.items():
        longer = sum(a > b for a, b in zip(times, reference, strict=True)) / rounds
        median = statistics.median(times) * 1e6
        print(f"{what:14} median {median:7.1f} us   longer than one that never was {longer:6.1%}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
