"""On Hopper GPUs before vLLM 0.33: adapters' outputs computed with one pipeline stage.

vLLM's kernel that adds B's product to a layer's output (`lora_expand`) runs with two stages, which
ptxas before 13.3 compiles wrongly for these GPUs (Triton's issue 9433): outputs of adapters are
garbled or NaN. From 0.33 on vLLM uses one stage there. Before, its folder of tuned configurations
can set it. Not run on such a GPU; taken from vLLM's sources.

Relies on the names and the form of the files that `get_lora_op_configs` reads, and on its defaults
(vllm/lora/ops/triton_ops/utils.py, 0.26 to 0.32).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from stacked.engine.machine import Gpu
from stacked.engine.support import Build

FOLDER = "VLLM_TUNED_CONFIG_FOLDER"
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")
_MOST_SLICES = 16  # of one layer: q, k and v are three


def needs_one_stage(build: Build, gpus: Sequence[Gpu]) -> bool:
    old = build.device == "cuda" and build.release < (0, 33)
    return old and any(_HOPPER.search(gpu.name) for gpu in gpus)


def note() -> str:
    """What the plan says about it before the engine starts."""
    if _users_own():
        return (
            f"{FOLDER} is set: on Hopper before vLLM 0.33, its configurations of `expand` must "
            "have num_stages 1, or adapters answer wrongly"
        )
    return "lora_expand in one stage: two are miscompiled on Hopper, vLLM 0.33 does this itself"


def use_one_stage(gpus: Sequence[Gpu]) -> None:
    """Have vLLM's workers that start from now on do so, unless the user has set a folder."""
    if _users_own():
        return
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_configurations())
    for name in {re.sub("[ -]", "_", gpu.name) for gpu in gpus}:
        for added in ("TRUE", "FALSE"):
            (folder / f"{name}_EXPAND_{added}.json").write_text(text, encoding="utf-8")
    os.environ[FOLDER] = str(folder)


def _folder() -> Path:
    """Next to what vLLM itself stores about this machine."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("VLLM_CACHE_ROOT") or caches / "vllm") / "stacked-one-stage"


def _users_own() -> bool:
    return os.environ.get(FOLDER) not in (None, str(_folder()))


def _configurations() -> dict[str, object]:
    """vLLM's defaults with one stage, by number of slots, slices, rows, rank and width.

    It uses the nearest number for all but the slices, so one of each is enough.
    """
    one: dict[str, int | None] = {"block_m": 64, "block_k": 32, "num_warps": 4, "num_ctas": 1}
    one |= {"num_stages": 1, "max_nreg": None}
    slices = range(1, _MOST_SLICES + 1)
    rows = {str(n): {"1": {"1": {"1": one | {"block_n": 64 if n > 1 else 128}}}} for n in slices}
    return {"1": rows}
