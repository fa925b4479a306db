"""Small models of each runtime, made here: what they answer is known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from stacked.core import Code, Digest, ModelFiles, Runtime
from stacked.models.engine import ModelHandle, ModelsEngine
from stacked.store.models import runtime_of
from tests.processes import Process, descendants


def files(path: Path, runtime: Runtime = Runtime.ONNX, code: Code | None = None) -> ModelFiles:
    """A folder as the store would give it."""
    found = sorted(each for each in path.rglob("*") if each.is_file())
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in found)).hexdigest()
    size = sum(each.stat().st_size for each in found)
    main = runtime_of(path)[1]
    plain = ModelFiles(Digest(f"sha256:{digest}"), path, size, runtime, main)
    return plain.loaded_by(code) if code else plain


def save_onnx(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], *weights: Any
) -> ModelFiles:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    opset = helper.make_opsetid("", 21)
    path.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path / "model.onnx")
    return files(path)


def tensor(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def times(path: Path, factor: float) -> ModelFiles:
    """An ONNX model: y = factor * x, for x of FP32 and shape [-1, 3]."""
    x, y = (tensor(name, TensorProto.FLOAT, "n", 3) for name in "xy")
    weight = numpy_helper.from_array(np.float32([factor]), "w")
    return save_onnx(path, [helper.make_node("Mul", ["x", "w"], ["y"])], [x], [y], weight)


def torch_module(factor: float) -> Any:
    """A module of PyTorch: factor * x."""
    import torch

    class Times(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = float(factor)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul(self.factor)

    return Times()


def script(path: Path, factor: float) -> ModelFiles:
    """A TorchScript model: output = factor * x."""
    import torch

    path.mkdir(parents=True)
    torch.jit.save(torch.jit.script(torch_module(factor)), path / "model.pt")
    return files(path, Runtime.TORCH)


def same(path: Path, kind: int) -> ModelFiles:
    """An ONNX model: y = x, for tensors of one type and rank."""
    x, y = (tensor(name, kind, "n") for name in "xy")
    return save_onnx(path, [helper.make_node("Identity", ["x"], ["y"])], [x], [y])


def endless(path: Path) -> ModelFiles:
    """An ONNX model that counts to 2^62 where `x` is not zero."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("Add", ["at", "x"], ["at_out"]),
        ],
        "body",
        [
            tensor("i", TensorProto.INT64),
            tensor("go_on", TensorProto.BOOL),
            tensor("at", TensorProto.INT64, 1),
        ],
        [tensor("go_on_out", TensorProto.BOOL), tensor("at_out", TensorProto.INT64, 1)],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["bool"], to=TensorProto.BOOL),
        helper.make_node("Squeeze", ["bool"], ["go_on"]),
        helper.make_node("Loop", ["most", "go_on", "x"], ["y"], body=body),
    ]
    x, y = (tensor(name, TensorProto.INT64, 1) for name in "xy")
    most = numpy_helper.from_array(np.array(2**62, np.int64), "most")
    return save_onnx(path, nodes, [x], [y], most)


def score(path: Path, source: str, **data: str) -> Code:
    """A folder with this score.py, and files of data."""
    path.mkdir(parents=True)
    (path / "score.py").write_text(source, encoding="utf-8")
    for name, text in data.items():
        (path / name).write_text(text, encoding="utf-8")
    digest = hashlib.sha256(source.encode()).hexdigest()
    return Code(Digest(f"sha256:{digest}"), path)


def folder(path: Path, code: Code, **data: str) -> ModelFiles:
    """A member that only has data, and the code that loads it."""
    path.mkdir(parents=True)
    for name, text in data.items():
        (path / name).write_text(text, encoding="utf-8")
    return files(path, Runtime.DATA, code)


def request(data: Any, shape: Sequence[int], datatype: str = "FP32", **more: Any) -> bytes:
    one = {"name": "x", "shape": [*shape], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [one], **more}).encode()


async def infer(
    engine: ModelsEngine, handle: ModelHandle, body: bytes, kind: str, model: str = ""
) -> bytes:
    """The answer to a body of a content type."""
    return (await engine.infer(handle, body, {"content-type": kind}, model))[0]


def pids_of(engine: ModelsEngine) -> list[int]:
    """Its processes that run now."""
    return [worker.pid for pool in engine._pools.values() for worker in pool.workers]


def resident(engine: ModelsEngine) -> int:
    """Bytes of memory that its processes have now."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids_of(engine))


async def ask(engine: ModelsEngine, handle: ModelHandle, data: Any, datatype: str = "FP32") -> Any:
    """The values of the only output, for rows of `x` (or for a flat list)."""
    shape = np.shape(np.array(data, object))
    body = request(data, shape, datatype)
    answer = json.loads(await infer(engine, handle, body, "application/json", "key"))
    return answer["outputs"][0]["data"]


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[ModelsEngine, list[tuple[str, str]]]]:
    """An engine, and the models that it has given up, each with the reason."""
    given_up: list[tuple[str, str]] = []
    engine = ModelsEngine(lambda handle, why: given_up.append((handle.digest, why)), **options)
    try:
        yield engine, given_up
    finally:
        await engine.close()


def processes() -> dict[Process, str]:
    """The worker processes that this one has started."""
    return started_by(os.getpid())


def started_by(pid: int) -> dict[Process, str]:
    """The worker processes of a server."""
    found = descendants(pid)
    return {each: command for each, command in found.items() if "models.worker" in command}
