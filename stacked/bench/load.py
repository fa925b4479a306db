"""vLLM's serving benchmark, unchanged, as the load generator: one process for all loads.

It is imported once, before anything is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stacked.bench.children import Talk, talking
from stacked.errors import ParameterInvalid

# `vllm bench serve` without its launcher, which the CPU build cannot start. What it prints goes
# to stderr, so that stdout has nothing but an answer a line.
_DRIVER = """
import argparse, asyncio, json, os, sys
from vllm.benchmarks.serve import add_cli_args, main_async
replies = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
parser = argparse.ArgumentParser()
add_cli_args(parser)
replies.write("{}\\n")
for line in sys.stdin:
    try:
        result = asyncio.run(main_async(parser.parse_args(json.loads(line)["words"])))
        errors = [error for error in result.pop("errors", ()) if error]
        result = {k: v for k, v in result.items() if isinstance(v, (int, float, str))}
        result["first_error"] = errors[0][-400:] if errors else ""
    except BaseException as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    replies.write(json.dumps(result) + "\\n")
"""

FIGURES = (
    "request_throughput",
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "median_itl_ms",
    "p99_itl_ms",
)


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` at once, or requests that arrive at `rate` a second; one of them is 0."""

    clients: int
    rate: float
    requests: int

    @property
    def name(self) -> str:
        return f"{self.clients} clients" if self.clients else f"{self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of every request, in tokens; answers are never shorter."""

    prompt: int
    output: int


def words(
    url: str, tokenizer: Path, keys: Sequence[str], load: Load, lengths: Lengths, seed: int = 0
) -> list[str]:
    """The arguments of `vllm bench serve`. The same seed sends the same requests."""
    said = ["--base-url", url, "--backend", "openai", "--endpoint", "/v1/completions"]
    said += ["--model", "base", "--tokenizer", str(tokenizer), "--dataset-name", "random"]
    said += ["--random-input-len", str(lengths.prompt), "--random-output-len", str(lengths.output)]
    said += ["--num-prompts", str(load.requests), "--seed", str(seed), "--temperature", "0"]
    # Detailed, so that errors are reported.
    said += ["--save-detailed", "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl"]
    if keys:
        said += ["--lora-modules", *keys, "--lora-assignment", "round-robin"]
    if load.clients:
        return [*said, "--max-concurrency", str(load.clients)]
    return [*said, "--request-rate", f"{load.rate:g}"]


def loads_of(clients: str, rates: str, requests: int) -> list[Load]:
    """Loads from `16,64` and `5,20.5`; `requests` for each client, and for each second of a rate.

    Raises ParameterInvalid.
    """
    try:
        found = [Load(int(word), 0.0, requests * int(word)) for word in clients.split(",") if word]
        found += [
            Load(0, float(word), max(1, round(2 * requests * float(word))))
            for word in rates.split(",")
            if word
        ]
    except ValueError as error:
        raise ParameterInvalid(f"numbers with commas between them, as in 16,64: {error}") from error
    if not found or any(load.requests < 1 for load in found):
        raise ParameterInvalid("a load has at least one client, or a rate above 0")
    return found


@contextmanager
def generator(directory: Path) -> Iterator[Talk]:
    """The load generator, ready. Raises ParameterInvalid if its imports are missing."""
    if find_spec("pandas") is None:
        raise ParameterInvalid("vLLM's serving benchmark needs pandas; install stacked[bench]")
    command = [sys.executable, "-c", _DRIVER]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with talking(command, directory / "load.log", "the load generator", environment) as talk:
        talk.hear()
        yield talk


def run_load(talk: Talk, said: Sequence[str], load: Load) -> dict[str, Any]:
    """The figures of one run. Raises EngineStartFailed if it did not run."""
    return checked(talk.ask({"words": list(said)}), load)


def checked(result: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """Raises ParameterInvalid if a request failed: only complete runs count."""
    if result.get("completed") != load.requests:
        raise ParameterInvalid(
            f"{load.requests - int(result.get('completed', 0))} of {load.requests} requests failed "
            f"under {load.name}, and such a run is no measurement. "
            f"The first: {result.get('first_error') or 'it does not say'}"
        )
    return {name: float(result[name]) for name in FIGURES}
