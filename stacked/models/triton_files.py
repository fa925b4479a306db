"""Models as a Triton server takes them: the files and the configuration of a load, and a canary."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from stacked.core import ModelFiles, Runtime
from stacked.models.engine import PLATFORMS

LENGTH = "inference-header-content-length"
"""The header of the binary tensor extension."""
# A multiple of 3: the base64 of the chunks is then that of the whole.
_CHUNK = 3 * 2**18
_HERE = Path(__file__).parent
# What a score.py needs of this package where it runs.
_IN_TRITON = ("__init__.py", "runtimes.py", "tensors.py", "worker.py")
_TEXTS = {"data_type": "TYPE_STRING", "dims": [2]}
PYTHON = {
    "backend": "python",
    "input": [{"name": "call", **_TEXTS}],
    "output": [{"name": "answer", **_TEXTS}],
}
# Configurations to try, in this order.
BACKENDS: dict[Runtime, list[dict[str, Any]]] = {
    runtime: [{"platform": platform}] for runtime, platform in PLATFORMS.items()
}
BACKENDS[Runtime.SAVED_MODEL].append({"backend": "openvino"})


def runs_code(content: ModelFiles) -> bool:
    return content.code is not None or content.runtime is Runtime.SCORE


async def pushed(
    content: ModelFiles, backend: Mapping[str, Any], pause: Callable[[], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """The body of the load, made while it is sent: models may be larger than memory.

    `pause` is called before its end, with which the load begins.
    """
    main, files = _files(content)
    pinned: dict[str, Any] = {}
    if content.cards:  # an instance on each
        pinned = {"instance_group": [{"kind": "KIND_GPU", "gpus": content.cards}]}
    config = json.dumps({**backend, **pinned, "default_model_filename": main})
    yield b'{"parameters":{"config":' + json.dumps(config).encode()
    for name, path in files.items():
        yield f',{json.dumps(f"file:1/{name}")}:"'.encode()
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield base64.b64encode(chunk)
        yield b'"'
    await pause()
    yield b"}}"


def _files(content: ModelFiles) -> tuple[str, dict[str, Path]]:
    """The name of the model in the folder of a version, and all files there by their names."""
    path, code = content.path, content.code
    if runs_code(content):
        files = {"model.py": _HERE / "triton_score.py"} | _tree("model/", path)
        if code is not None and code.path != path:
            files |= _tree("code/", code.path)
        return "model.py", files | {f"stacked/models/{each}": _HERE / each for each in _IN_TRITON}
    assert content.main is not None, "what no code loads is one file"
    folder = content.main.parent
    if content.runtime is Runtime.SAVED_MODEL:
        return "model.savedmodel", _tree("model.savedmodel/", folder)
    return content.main.name, _tree("", folder)  # its weights may be in files beside it


def _tree(prefix: str, folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): path for path in paths}


def zeros(described: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request of the smallest inputs, in binary, as JSON cannot carry all datatypes."""
    rows: list[dict[str, Any]] = []
    for spec in described["inputs"]:
        shape = [max(1, size) for size in spec["shape"]]
        bits = re.sub("[^0-9]", "", spec["datatype"]) or {"BOOL": 8}.get(spec["datatype"], 32)
        size = {"binary_data_size": prod(shape) * int(bits) // 8}
        rows.append({**spec, "shape": shape, "parameters": size})
    half = [
        {"name": each["name"], "parameters": {"binary_data": each["datatype"] in ("FP16", "BF16")}}
        for each in described["outputs"]
    ]
    head = json.dumps({"inputs": rows, "outputs": half}).encode()
    tensors = bytes(sum(each["parameters"]["binary_data_size"] for each in rows))
    return head + tensors, {LENGTH: str(len(head))}
