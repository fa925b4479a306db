"""The least time that a machine's ceilings allow for a run, to compare a measured one with.

The ceilings are measured by a separate process (`python -m stacked.bench.ceilings DTYPE`), so
that its memory is free again before an engine starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil, prod
from pathlib import Path

from stacked.engine.ceilings import Ceilings, measure_ceilings
from stacked.errors import EngineStartFailed
from stacked.store import BaseModules

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SECONDS_TO_MEASURE = 300  # importing torch from a cold disk takes most of it


@dataclass(frozen=True, slots=True)
class Bound:
    """What was measured, and the least time that it allows for one run."""

    ceilings: Ceilings
    seconds: float


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """A base's linear layers: how many weights, and how many of them are the head's."""

    weights: int
    head: int

    @classmethod
    def of(cls, modules: BaseModules) -> BaseWeights | None:
        """None if a shape is unknown, as for a quantised base."""
        head = layers = 0
        for name, shape in modules.modules.items():
            if name in modules.embeddings or not modules.in_language_model(name):
                continue
            if shape is None:
                return None
            if name.rpartition(".")[2] == "lm_head":
                head += prod(shape)
            else:
                layers += prod(shape)
        return cls(layers + head, head)


def least_seconds(
    base: BaseWeights, ceilings: Ceilings, *, requests: int, batch: int, prompt: int, output: int
) -> float:
    """The least time of a run: each step reads all weights once, each token is multiplied by them.

    Attention, adapters and all else that is no product of weights are not counted; `prompt` and
    `output` are tokens of each request.
    """
    bytes_read = base.weights * _BYTES[ceilings.dtype]
    layers, head = 2 * (base.weights - base.head), 2 * base.head
    reading = requests * (prompt * layers + head) / ceilings.multiplied
    steps = ceil(requests / batch) * (output - 1)
    rows = requests * (output - 1) / steps if steps else 0.0
    step = max(bytes_read / ceilings.copied, rows * (layers + head) / ceilings.multiplied)
    return reading + steps * step


def dtype_of(base: Path, chosen: object) -> str:
    """The dtype that `auto` means for this base."""
    if isinstance(chosen, str) and chosen in _BYTES:
        return chosen
    config = json.loads((base / "config.json").read_bytes())
    own = config.get("dtype") or config.get("torch_dtype")
    return "float32" if own == "float32" else "bfloat16"


def measured_ceilings(dtype: str) -> Ceilings:
    """Measure them now. Raises EngineStartFailed."""
    command = [sys.executable, "-m", "stacked.bench.ceilings", dtype]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS_TO_MEASURE, check=True
        )
        return Ceilings(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["nothing"])[-1]
        raise EngineStartFailed(f"the machine's ceilings could not be measured: {last}") from error
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise EngineStartFailed(f"the machine's ceilings could not be measured: {error}") from error


def main(words: Iterable[str]) -> int:
    (dtype,) = words
    print(json.dumps(asdict(measure_ceilings(dtype))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
