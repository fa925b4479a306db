"""The lab's engine, given the same adapters twice: by vLLM's own loading, and staged.

It writes down what it saw; ``test_staging`` says what that must be.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stacked.core import Adapter, Digest
from stacked.engine.adaptable import Asking
from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded, Resident
from stacked.errors import EngineLoadFailed
from tests import tiny
from tests.live.lab import SLOTS, Lab

PROMPT = list(range(300, 340))
TOKENS = 24
STREAM_TOKENS = 160
TARGETS: Sequence[tuple[str, ...]] = (
    tiny.ALL_LINEAR,
    ("q_proj", "v_proj"),
    ("o_proj", "down_proj"),
    tiny.ATTENTION,
    ("gate_proj", "up_proj", "k_proj"),
    tiny.ALL_LINEAR,
)


def make_adapters(root: Path, base: Path) -> list[Adapter]:
    """Adapters of several ranks for several modules, so that slots hold less than before."""
    made = []
    for seed, targets in enumerate(TARGETS, start=1):
        rank = (16, 4, 8)[seed % 3]
        path = tiny.build_adapter(root / str(seed), base, seed, rank=rank, target_modules=targets)
        made.append(Adapter(Digest(f"sha256:{seed:064x}"), path, 1, rank, targets))
    return made


class Run:
    def __init__(self, engine: Engine, adapters: list[Adapter]) -> None:
        self.engine = engine
        self.adapters = adapters
        self.report: dict[str, Any] = {"slots": SLOTS}
        self._asked = 0

    async def answer(self, loaded: Loaded | None, tokens: int = TOKENS) -> list[int]:
        self._asked += 1
        sampling = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        outputs = await self.engine.generate(
            [PROMPT], loaded, request_id=f"staging-{self._asked}", sampling=sampling
        )
        return list(outputs[0].outputs[0].token_ids)

    async def by_vllm(self) -> None:
        """Each adapter by vLLM's own add_lora, alone in the engine."""
        answers = {"base": await self.answer(None)}
        for adapter in self.adapters:
            loaded = await self.engine._handle(adapter)
            assert await self.engine.client.add_lora(loaded.request)
            answers[adapter.digest] = await self.answer(loaded)
            await self.engine.remove(loaded)
        self.report["add_lora"] = answers

    async def streams(self, users: Sequence[Loaded]) -> list[list[int]]:
        one_each = (self.answer(loaded, STREAM_TOKENS) for loaded in (None, *users))
        return await asyncio.gather(*one_each)

    async def staged(self) -> list[Loaded]:
        """All of them staged while others stream; then asked alone and all at once."""
        users = [await self.engine.load(adapter) for adapter in self.adapters[:SLOTS]]
        self.report["streams"] = await self.streams(users)
        streaming = asyncio.create_task(self.streams(users))
        others = [await self.engine.stage(adapter) for adapter in self.adapters[SLOTS:]]
        for loaded in others:
            await self.engine.adopt(loaded)
            await self.engine.adopt(loaded)
        told = [await self.engine.activate(loaded) for loaded in (*users, *others)]
        spare = await self.engine.stage(self.adapters[0])
        await self.engine.discard(spare)
        self.report["discarded"] = place(await self.engine.resident())
        self.report["streams beside staging"] = await streaming
        self.report["activated"] = told
        self.report["resident"] = place(await self.engine.resident())
        return [*users, *others]

    async def ask(self, handles: list[Loaded]) -> None:
        alone = {str(loaded.digest): await self.answer(loaded) for loaded in handles}
        self.report["staged, alone"] = {"base": await self.answer(None)} | alone
        every = await asyncio.gather(*(self.answer(loaded) for loaded in (None, *handles)))
        names = ["base", *(str(loaded.digest) for loaded in handles)]
        self.report["staged, at once"] = dict(zip(names, every, strict=True))

    async def huge(self, root: Path, base: Path) -> None:
        """The base while an adapter computes what is not a number, and in the blocks it used."""
        import torch
        from safetensors.torch import load_file, save_file

        path = tiny.build_adapter(root / "huge", base, 1, target_modules=("down_proj",))
        weights = load_file(path / "adapter_model.safetensors")
        first = next(name for name in weights if "layers.0" in name and "lora_A" in name)
        weights[first][0] = torch.finfo(torch.float32).max
        save_file(weights, path / "adapter_model.safetensors", {"format": "pt"})
        loaded = await self.engine.load(Adapter(Digest("sha256:00"), path, 1, 8, ("down_proj",)))
        found = []
        for _ in range(3):
            found.append(await asyncio.gather(self.answer(loaded), self.answer(None)))
        await self.engine.remove(loaded)
        self.report["huge"] = [answers[0] for answers in found]
        after = await asyncio.gather(*(self.answer(None) for _ in range(4)))
        self.report["base with and after huge"] = [*(answers[1] for answers in found), *after]

    async def failures(self, root: Path) -> None:
        cut = root / "cut"
        cut.mkdir()
        good = self.adapters[0].path
        (cut / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
        weights = (good / "adapter_model.safetensors").read_bytes()
        (cut / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
        self.report["before failures"] = place(await self.engine.resident())
        self.report["failures"] = {}
        for name, path in (("missing", root / "nowhere"), ("cut", cut)):
            try:
                await self.engine.load(Adapter(Digest("sha256:0"), path, 1, 8, ("q_proj",)))
            except EngineLoadFailed as error:
                self.report["failures"][name] = str(error)
        self.report["after failures"] = place(await self.engine.resident())


def place(resident: Resident) -> dict[str, Any]:
    found = asdict(resident)
    return {
        "staged": sorted(found["staged"]),
        "host": sorted(found["host"]),
        "slots": list(found["slots"]),
    }


def report(lab: Lab, root: Path) -> dict[str, Any]:
    """What was seen on the lab's engine, which serves nothing meanwhile."""
    served = {str(member.key): member.content for member in lab.live.routing.members}
    assert lab.update({}).error is None
    base = Path(lab.base.path)
    try:
        found = lab.run(_seen(Run(lab.engine, make_adapters(root, base)), root, base))
    finally:
        assert lab.update(served).error is None
    found["probed"] = json.loads(Asking(base, {}, root / "engine").ask().to_json())
    return found


async def _seen(run: Run, root: Path, base: Path) -> dict[str, Any]:
    run.report["adaptable"] = json.loads((await run.engine.adaptable()).to_json())
    await run.by_vllm()
    handles = await run.staged()
    await run.ask(handles)
    await run.failures(root)
    await run.engine.remove(*handles)
    await run.huge(root, base)
    run.report["removed"] = place(await run.engine.resident())
    return run.report
