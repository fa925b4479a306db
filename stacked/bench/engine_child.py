"""One engine in a separate process, which runs the batches that it reads from stdin.

It answers each line of JSON with one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from stacked.bench.processes import forget_peaks, gpu_bytes, peak_bytes
from stacked.bench.subject import adapters_of, plan_of
from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded
from stacked.engine.plan import EnginePlan
from stacked.errors import StackedError
from stacked.store import BaseModules

_LORA = ("enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras")
_LEAST_TOKEN = 3  # below it are the tokens that begin, end and pad


def without_lora(plan: EnginePlan) -> EnginePlan:
    """The same plan in everything else."""
    kept = {name: value for name, value in plan.options.items() if name not in _LORA}
    return replace(plan, options=kept, slots=0, host_adapters=0)


class Runner:
    """The engine and its adapters."""

    def __init__(self, engine: Engine, loaded: Sequence[Loaded], vocabulary: int) -> None:
        self._engine, self._loaded, self._vocabulary = engine, loaded, vocabulary
        self._numbers = itertools.count()

    async def run(self, requested: Mapping[str, Any]) -> dict[str, Any]:
        """All requests, `batch` at a time, each of `input` random and `output` greedy tokens."""
        forget_peaks()
        chance = random.Random(requested["seed"])
        waiting = iter(
            [(number, self._prompt(chance, requested)) for number in requested["assigned"]]
        )
        began = time.perf_counter()
        clients = (self._client(waiting, requested["output"]) for _ in range(requested["batch"]))
        produced = sum(await asyncio.gather(*clients))
        seconds = time.perf_counter() - began
        requests = len(requested["assigned"])
        return {
            "seconds": seconds,
            "requests": requests,
            "input_tokens": requests * requested["input"],
            "output_tokens": produced,
            "peak_bytes": peak_bytes(),
            "gpu_bytes": gpu_bytes(),
        }

    async def _client(
        self, waiting: Iterator[tuple[int | None, Sequence[int]]], output: int
    ) -> int:
        """Send one request after the other until none is left; returns the number of tokens."""
        sampling = {"max_tokens": output, "ignore_eos": True, "temperature": 0, "detokenize": False}
        produced = 0
        for number, prompt in waiting:
            loaded = None if number is None else self._loaded[number]
            name = f"bench-{next(self._numbers)}"
            answers = await self._engine.generate(
                [prompt], loaded, request_id=name, sampling=sampling
            )
            produced += len(answers[0].outputs[0].token_ids)
        return produced

    def _prompt(self, chance: random.Random, requested: Mapping[str, Any]) -> list[int]:
        most = self._vocabulary - 1
        return [chance.randint(_LEAST_TOKEN, most) for _ in range(requested["input"])]


async def serve(requested: Mapping[str, Any], replies: TextIO) -> None:
    """Start, report it, and run batches until the input ends.

    `requested` has base, options, the adapters' directories, and whether LoRA is on.
    """
    base = Path(requested["base"])
    modules = BaseModules.read(base)
    adapters = adapters_of([Path(path) for path in requested["adapters"]])
    plan = plan_of(base, modules, adapters, requested["options"])
    if not requested["lora"]:
        plan, adapters = without_lora(plan), []
    engine = await Engine.start(plan)
    try:
        await engine.warm()
        loaded = [await engine.load(adapter) for adapter in adapters]
        runner = Runner(engine, loaded, modules.vocab_size or 256)
        _say(replies, {})
        while line := await asyncio.to_thread(sys.stdin.readline):
            _say(replies, await runner.run(json.loads(line)))
    finally:
        await engine.close()


def main() -> int:
    """Replies go to stdout; everything that vLLM prints there goes to stderr, which is the log."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        asyncio.run(serve(json.loads(sys.stdin.readline()), replies))
    except StackedError as error:
        _say(replies, {"code": error.code, "error": str(error)})
        return 1
    return 0


def _say(replies: TextIO, said: Mapping[str, Any]) -> None:
    replies.write(json.dumps(said, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
