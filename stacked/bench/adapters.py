"""Random LoRA adapters of a chosen rank for any base, to measure without real ones.

Their answers mean nothing; their sizes and products are real.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stacked.errors import BaseNotFound
from stacked.store import BaseModules

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
TARGETS = {"attention": ATTENTION, "all-linear": LINEAR}

# Small enough that answers stay finite in any dtype, large enough to change an answer.
_DEVIATION = 0.05

# A prime, so that no row of a matrix begins where another does.
_DRAWN = 65537

Weights = np.ndarray[tuple[int, ...], np.dtype[np.float16]]


def generate(
    modules: BaseModules,
    count: int,
    rank: int,
    targets: Sequence[str],
    directory: Path,
    fraction: Callable[[float], None] = lambda _: None,
) -> list[Path]:
    """Write `count` different adapters in float16 below `directory`; their directories.

    Raises BaseNotFound if the base has none of the targets.
    """
    shapes = _shapes(modules, targets)
    config = json.dumps(_config(rank, targets), indent=2)
    paths = []
    for number in range(count):
        path = directory / f"adapter-{number}"
        path.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(shapes, rank, number), path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
        paths.append(path)
        fraction((number + 1) / count)
    return paths


def size_of(path: Path) -> int:
    """Bytes of one adapter's weights."""
    return sum(file.stat().st_size for file in path.glob("adapter_model.*"))


def _shapes(modules: BaseModules, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    found = {
        name: shape
        for name, shape in modules.modules.items()
        if name.rpartition(".")[2] in targets
        and shape is not None
        and modules.in_language_model(name)
    }
    if not found:
        raise BaseNotFound(
            f"{modules} has no modules called {', '.join(targets)} whose shape is known; "
            "name adapters of your own instead"
        )
    return found


def _tensors(shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> dict[str, Weights]:
    """lora_A [rank, in] and lora_B [out, rank] of every module.

    Drawing every number of hundreds of large adapters would take minutes, so a stretch of them is
    drawn, and every tensor repeats it from another offset.
    """
    chance = np.random.default_rng(seed)
    numbers = chance.standard_normal(_DRAWN, dtype=np.float32) * np.float32(_DEVIATION)
    stretch = np.tile(numbers.astype(np.float16), 2)

    def weights(rows: int, columns: int) -> Weights:
        begin = int(chance.integers(_DRAWN))
        return np.resize(stretch[begin : begin + _DRAWN], (rows, columns))

    tensors = {}
    for name, (out, inner) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = weights(rank, inner)
        tensors[f"base_model.model.{name}.lora_B.weight"] = weights(out, rank)
    return tensors


def _config(rank: int, targets: Sequence[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "base_model_name_or_path": None,
    }
