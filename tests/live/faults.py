"""A client of the real engine whose chosen call goes wrong, and damage to an adapter's files.

It must not know updates; it stands where vLLM's own client stands, below every time limit.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass
class Fault:
    """What happens at the call `point`, after so many that go well.

    `raises`: the engine tells a failure. `lost`: the call never reaches it and nothing comes back.
    `unanswered`: it is done, and nothing comes back. `stuck`: the engine does nothing more, neither
    this call nor any later one, until it is released, and then all of them in order.
    """

    point: str
    mode: str
    skip: int = 0
    hits: int = 0


class FaultyClient:
    """vLLM's client with at most one fault. Points are the worker's commands, `list_loras`,
    `canary base` and `canary adapter`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.fault: Fault | None = None
        self._gate: asyncio.Event | None = None
        self._late: set[asyncio.Task[Any]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def release(self) -> None:
        """No more faults; what waited is done now."""
        self.fault = None
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    async def settled(self) -> None:
        """Wait until everything that was held up has been done."""
        await asyncio.gather(*self._late, return_exceptions=True)

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> Any:
        return await self._through(args[0], lambda: self._client.collective_rpc(method, args=args))

    async def list_loras(self) -> Any:
        return await self._through("list_loras", self._client.list_loras)

    async def generate(self, *args: Any, **rest: Any) -> AsyncIterator[Any]:
        if str(args[2]).startswith("canary"):
            who = "adapter" if rest.get("lora_request") else "base"
            await self._through(f"canary {who}", _nothing)
        async for output in self._client.generate(*args, **rest):
            yield output

    async def _through(self, point: str, call: Callable[[], Awaitable[Any]]) -> Any:
        mode = self._mode(point)
        if mode == "raises":
            raise RuntimeError("injected: the engine could not")
        if mode == "stuck":
            self._gate = asyncio.Event()
        if self._gate is not None:
            task = asyncio.ensure_future(_after(self._gate, call))
            self._late.add(task)
            return await asyncio.shield(task)
        if mode == "lost":
            await asyncio.Event().wait()
        answer = await call()
        if mode == "unanswered":
            await asyncio.Event().wait()
        return answer

    def _mode(self, point: str) -> str:
        """Each fault strikes once."""
        fault = self.fault
        if fault is None or fault.point != point:
            return ""
        fault.hits += 1
        return fault.mode if fault.hits == fault.skip + 1 else ""


async def _after(gate: asyncio.Event, call: Callable[[], Awaitable[Any]]) -> Any:
    await gate.wait()
    return await call()


async def _nothing() -> None:
    return None


# -- damage to the files of an adapter: each takes its directory -----------------------------------


def weights_missing(path: Path) -> None:
    (path / WEIGHTS).unlink()


def config_missing(path: Path) -> None:
    (path / CONFIG).unlink()


def truncated(path: Path) -> None:
    _write(path / WEIGHTS, (path / WEIGHTS).read_bytes()[:-1000])


def bad_json(path: Path) -> None:
    _write(path / CONFIG, (path / CONFIG).read_bytes()[:-5])


def rank_too_large(path: Path) -> None:
    """As an adapter of rank 128 would be, in its config and in its weights."""
    import numpy as np

    config = json.loads((path / CONFIG).read_text())
    _write(path / CONFIG, json.dumps(config | {"r": 128, "lora_alpha": 128}).encode())
    _change(
        path,
        lambda name, tensor: np.concatenate([tensor] * 16, axis=0 if "lora_A" in name else 1),
    )


def wrong_shapes(path: Path) -> None:
    """One column less, which fits into a slot: only the checks can notice."""
    _change(path, lambda name, tensor: tensor[:, :-1] if "lora_A" in name else tensor)


def other_base(path: Path) -> None:
    """Weights for a base of twice this width."""
    import numpy as np

    _change(
        path,
        lambda name, tensor: np.concatenate([tensor] * 2, axis=1 if "lora_A" in name else 0),
    )


def not_a_number(path: Path) -> None:
    import numpy as np

    _change(path, lambda name, tensor: np.full_like(tensor, np.nan))


def no_op(path: Path) -> None:
    """Weights that are not zero, and change no answer: a canary alone can tell."""
    _change(path, lambda name, tensor: tensor * (1e-30 if "lora_B" in name else 1))


def other_values(path: Path) -> None:
    """Weights that nobody ever checked, and that look well."""
    _change(path, lambda name, tensor: tensor * 2)


def pickle(path: Path) -> None:
    """The same weights as torch writes them, in place of the safetensors file."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(path / WEIGHTS), path / "adapter_model.bin")
    (path / WEIGHTS).unlink()


def damaged(path: Path, how: Callable[[Path], None]) -> None:
    """Do it to a directory of the store, whose files are read-only."""
    path.chmod(0o755)
    for file in path.iterdir():
        file.chmod(0o644)
    how(path)


def copied(path: Path, to: Path, how: Callable[[Path], None]) -> Path:
    """A damaged copy."""
    shutil.copytree(path, to)
    damaged(to, how)
    return to


def _change(path: Path, change: Callable[[str, Any], Any]) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path / WEIGHTS)
    made = {name: np.ascontiguousarray(change(name, tensor)) for name, tensor in tensors.items()}
    save_file(made, path / WEIGHTS, {"format": "pt"})


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
