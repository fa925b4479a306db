"""One real engine over a base and its adapters, asked each prompt on each of them.

It owns the running and writes down what it saw; the tests say what that must be. Run as
``python -m tests.engine.answers_run ASKED.json OUT.json``: the first has ``base`` (a directory),
``adapters`` (directories by name), ``options`` (vLLM's), ``prompts`` (token ids) and ``tokens``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stacked.engine.engine import Engine
from stacked.engine.machine import look
from stacked.engine.plan import make_plan
from stacked.engine.support import require_build
from stacked.store import BaseModules
from stacked.store.checks import check_directory

OPTIONS = {"max_model_len": 256, "kv_cache_memory_bytes": 256 * 1024**2}


def run(
    folder: Path,
    base: Path,
    adapters: Mapping[str, Path],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    **options: Any,
) -> dict[str, Any]:
    """What an engine in a process of its own answers; `folder` is for its files.

    By name, "base" among them: token ids of each prompt in `answers`, two canaries in `canaries`.
    """
    asked = {
        "base": str(base),
        "adapters": {name: str(path) for name, path in adapters.items()},
        "options": OPTIONS | options,
        "prompts": prompts,
        "tokens": tokens,
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", __name__, folder / "asked.json", folder / "seen.json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return seen


async def ask(asked: Mapping[str, Any]) -> dict[str, Any]:
    base = Path(asked["base"])
    modules = BaseModules.read(base)
    paths = {name: Path(path) for name, path in asked["adapters"].items()}
    adapters = {n: check_directory(p, modules, None)[1].adapter(p) for n, p in paths.items()}
    plan = make_plan(
        base=base,
        shapes=modules.modules,
        served_names=("base",),
        adapters=[*adapters.values()],
        options=asked["options"],
        machine=look(),
        build=require_build(),
    )
    engine = await Engine.start(plan)
    try:
        await engine.warm()
        loaded = await engine.load_all([*adapters.values()], lambda count: None)
        handles = {"base": None} | {name: loaded[a.digest] for name, a in adapters.items()}
        sampling = {"max_tokens": asked["tokens"], "temperature": 0, "ignore_eos": True}
        # All at once: rows of every adapter share the steps.
        outputs = await asyncio.gather(
            *(
                engine.generate(asked["prompts"], handle, request_id=name, sampling=sampling)
                for name, handle in handles.items()
            )
        )
        answers = {
            name: [list(each.outputs[0].token_ids) for each in some]
            for name, some in zip(handles, outputs, strict=True)
        }
        canaries = {
            name: [(await engine.canary(handle))[0] for _ in range(2)]
            for name, handle in handles.items()
        }
        return {"answers": answers, "canaries": canaries, "plan": plan.text()}
    finally:
        await engine.close()


if __name__ == "__main__":
    seen = asyncio.run(ask(json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(seen, indent=1))
