"""Reads a safetensors file into one piece of memory, in another dtype, without blocking Python.

In a few large operations that release the interpreter; one tensor at a time would need it hundreds
of times.
"""

from __future__ import annotations

import json
import math
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Large enough that the interpreter is needed rarely, small enough to leave core and memory bus to
# others.
_CHUNK_BYTES = 1024**2

_own = threading.local()

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}


def read_tensors(file: Path, dtype: Any, *, pin: bool, pause: Callable[[], None]) -> dict[str, Any]:
    """Every floating-point tensor of `file` by name, as `tensor.to(dtype)` would give it.

    All are views of one tensor, in pinned memory if `pin`; tensors of other types are None. `pause`
    is called between chunks and may raise. Raises OSError, and ValueError for anything but a
    complete safetensors file.
    """
    import torch

    with file.open("rb", buffering=0) as stream:
        start, header = _read_header(stream)
        found: dict[str, Any] = dict.fromkeys(header)
        entries = [(name, entry) for name, entry in header.items() if entry["dtype"] in _DTYPES]
        total = sum(math.prod(entry["shape"]) for _, entry in entries)
        flat = _memory(total, dtype, pin=pin)
        at = 0
        for source, begin, end in _runs(entries):
            stream.seek(start + begin)
            at = _copy(stream, end - begin, getattr(torch, source), flat, at, pause)
        at = 0
        for name, entry in sorted(entries, key=_begin):
            size = math.prod(entry["shape"])
            found[name] = flat[at : at + size].view(entry["shape"])
            at += size
    return found


def _memory(count: int, dtype: Any, *, pin: bool) -> Any:
    """A flat tensor of `count` elements, whose memory is returned to the system when it is freed.

    Memory from `malloc` would return to an arena of its thread, and stay there in pieces.
    """
    import torch

    if pin or not count:
        return torch.empty(count, dtype=dtype, pin_memory=pin)
    pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype, count=count)


def _chunk() -> Any:
    """This thread's own buffer: touching new memory takes longer than reading into it."""
    import torch

    if len(getattr(_own, "chunk", ())) != _CHUNK_BYTES:
        _own.chunk = _memory(_CHUNK_BYTES, torch.uint8, pin=False)
    return _own.chunk


def _read_header(stream: Any) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and what the header says of each tensor."""
    length = int.from_bytes(_read_all(stream, memoryview(bytearray(8))), "little")
    if length > 100 * 1024**2:
        raise ValueError("not a safetensors file: its header is too long")
    header: dict[str, Any] = json.loads(bytes(_read_all(stream, memoryview(bytearray(length)))))
    header.pop("__metadata__", None)
    return 8 + length, header


def _runs(entries: list[tuple[str, Any]]) -> list[tuple[str, int, int]]:
    """Neighbouring tensors of one dtype as (torch's name of it, first byte, last byte + 1)."""
    runs: list[tuple[str, int, int]] = []
    for _, entry in sorted(entries, key=_begin):
        begin, end = entry["data_offsets"]
        source = _DTYPES[entry["dtype"]]
        if runs and runs[-1][0] == source and runs[-1][2] == begin:
            runs[-1] = (source, runs[-1][1], end)
        else:
            runs.append((source, begin, end))
    return runs


def _begin(entry: tuple[str, Any]) -> int:
    return int(entry[1]["data_offsets"][0])


def _copy(
    stream: Any, size: int, source: Any, flat: Any, at: int, pause: Callable[[], None]
) -> int:
    """Convert the next `size` bytes of dtype `source` into `flat` from `at`; return the next place.

    A header that names more elements than there are bytes fails here or runs past the end.
    """
    chunk = _chunk()
    while size > 0:
        pause()
        part = chunk[: min(size, _CHUNK_BYTES)]
        _read_all(stream, memoryview(part.numpy()))
        values = part.view(source)
        flat[at : at + len(values)].copy_(values)
        at += len(values)
        size -= len(part)
    return at


def _read_all(stream: Any, into: memoryview) -> memoryview:
    done = 0
    while done < len(into):
        got = stream.readinto(into[done:])
        if not got:
            raise ValueError("not a whole safetensors file: it ends early")
        done += got
    return into
