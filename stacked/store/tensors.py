"""Safetensors files without torch: the header as a table, and facts about the values."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from stacked.errors import WeightsInvalid
from stacked.store.limits import DEFAULT, Limits
from stacked.store.text import size, unique_keys

_CHUNK = 1 << 20  # elements checked at a time: a few MiB, which fit a core's cache

# Trained weights of LoRA are below about 10. Products of much larger ones overflow.
BOUND = 10_000


@dataclass(frozen=True, slots=True)
class Float:
    """The layout of a float type, so that its bits can be tested if numpy has no such type.

    A value is not finite when its bits under `exponent` are all set. `magnitude` leaves out the
    sign, so that -0.0 counts as zero. `bound` is the bits of the largest value up to `BOUND`. The
    bits of a value are the first of it in `numpy`.
    """

    bits: np.dtype[Any]
    exponent: int
    magnitude: int
    bound: int
    numpy: np.dtype[Any]


_U1, _U2, _U4, _U8 = map(np.dtype, ("u1", "<u2", "<u4", "<u8"))
_F2, _F4, _F8 = map(np.dtype, ("<f2", "<f4", "<f8"))
FLOATS: Mapping[str, Float] = {
    "F64": Float(_U8, 0x7FF0 << 48, (1 << 63) - 1, 0x40C3_8800 << 32, _F8),
    "F32": Float(_U4, 0x7F80_0000, 0x7FFF_FFFF, 0x461C_4000, _F4),
    "F16": Float(_U2, 0x7C00, 0x7FFF, 0x70E2, _F2),
    "BF16": Float(_U2, 0x7F80, 0x7FFF, 0x461C, _F4),
    # E4M3 as stored by safetensors is the "fn" kind: no infinity, one NaN pattern, at most 448.
    "F8_E4M3": Float(_U1, 0x7F, 0x7F, 0x7E, _F2),
    "F8_E5M2": Float(_U1, 0x7C, 0x7F, 0x70, _F2),
}
_ORDER = {kind: at for at, kind in enumerate(("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"))}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of a header. `start` is the byte in the file where the values begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def read_header(path: Path, limits: Limits = DEFAULT) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    The library checks the file itself (header, offsets inside the file, no overlap, no hole, sizes
    that fit the shapes); our own parser only adds the offsets that it does not return. Raises
    WeightsInvalid.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(file.read(8), total, path, limits)
        text = file.read(length)
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
        table = json.loads(text, object_pairs_hook=unique_keys)
        rows = [
            _row(name, entry, 8 + length) for name, entry in table.items() if name != "__metadata__"
        ]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsInvalid(
            f"{path.name} is not a readable safetensors file ({str(error)[:200]}); "
            "it may be cut short: save or copy it again"
        ) from error
    except RecursionError as error:
        raise WeightsInvalid(f"{path.name}: the header is nested too deeply") from error
    return {row.name: row for row in sorted(rows, key=lambda row: row.start)}


def write_file(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of one file to another under new names, byte for byte as PEFT would save them.

    The order is the library's own: the widest types first, then by name.
    """
    rows = sorted(tensors.items(), key=lambda row: (_ORDER[row[1].dtype], row[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in rows:
        span = [at, at + tensor.bytes]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
        at += tensor.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as read, target.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in rows:
            read.seek(tensor.start)
            for left in range(tensor.bytes, 0, -_CHUNK):
                file.write(read.read(min(left, _CHUNK)))


def is_finite(values: np.ndarray[Any, Any], kind: Float) -> bool:
    """Whether no value (given as raw bits) is NaN or infinite."""
    mask = kind.bits.type(kind.exponent)
    return not any(bool(((part & mask) == mask).any()) for part in _parts(values))


def is_within_bound(values: np.ndarray[Any, Any], kind: Float) -> bool:
    """Whether every value (given as raw bits) is finite and at most `BOUND` either way."""
    mask, bound = kind.bits.type(kind.magnitude), kind.bits.type(kind.bound)
    return not any(bool(((part & mask) > bound).any()) for part in _parts(values))


def largest(values: np.ndarray[Any, Any], kind: Float) -> float:
    """The largest magnitude of values that are given as raw bits; not of E4M3."""
    mask = kind.bits.type(kind.magnitude)
    bits = max(int((part & mask).max()) for part in _parts(values))
    missing = kind.numpy.itemsize - kind.bits.itemsize
    raw = (bits << 8 * missing).to_bytes(kind.numpy.itemsize, "little")
    return float(np.frombuffer(raw, kind.numpy)[0])


def is_zero(values: np.ndarray[Any, Any], kind: Float) -> bool:
    """Whether every value (given as raw bits) is zero. Stops at the first that is not."""
    mask = kind.bits.type(kind.magnitude)
    return not any(bool((part & mask).any()) for part in _parts(values))


class Values:
    """The values of one file as raw bits, memory-mapped. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except BaseException:
            self._file.close()
            raise

    def bits(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The tensor's values, flat, as the unsigned integers of its width. No copy."""
        kind = FLOATS[tensor.dtype].bits
        count = tensor.bytes // kind.itemsize
        return np.frombuffer(self._map, dtype=kind, count=count, offset=tensor.start)

    def all_bits(self, tensors: Mapping[str, Tensor]) -> np.ndarray[Any, Any]:
        """The values of all tensors, which have one type: the format leaves no gaps."""
        first = min(tensors.values(), key=lambda tensor: tensor.start)
        end = max(tensor.start + tensor.bytes for tensor in tensors.values())
        return self.bits(replace(first, bytes=end - first.start))

    def __enter__(self) -> Values:
        return self

    def __exit__(self, *_: object) -> None:
        # The mapping itself ends with the last array on it.
        self._file.close()


def _header_length(prefix: bytes, total: int, path: Path, limits: Limits) -> int:
    if len(prefix) < 8:
        raise WeightsInvalid(
            f"{path.name} has {total} bytes, which is no safetensors file; save or copy it again"
        )
    length = int(struct.unpack("<Q", prefix)[0])
    if length > limits.max_header_bytes:
        raise WeightsInvalid(
            f"{path.name} announces a header of {size(length)}; at most "
            f"{size(limits.max_header_bytes)} are read. Is it a safetensors file at all?"
        )
    if 8 + length > total:
        raise WeightsInvalid(
            f"{path.name} announces a header of {length} bytes but has {total} bytes in all; "
            "it was cut short: copy it again"
        )
    return length


def _row(name: str, entry: Any, data_start: int) -> Tensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    return Tensor(name, str(entry["dtype"]), shape, data_start + begin, end - begin)


def _parts(values: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    return (values[start : start + _CHUNK] for start in range(0, values.size, _CHUNK))
