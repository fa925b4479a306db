"""A TensorFlow SavedModel without TensorFlow: its protocol buffers, written here.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/saved_model.proto
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stacked.core import ModelFiles, Runtime
from tests.models.making import files

FLOAT = 1


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def entry(number: int, key: str, value: bytes) -> bytes:
    return field(number, field(1, key) + field(2, value))


def shape(*sizes: int) -> bytes:
    return b"".join(field(2, field(1, size)) for size in sizes)


def node(name: str, op: str, *inputs: str, **attributes: bytes) -> bytes:
    parts = [field(1, name), field(2, op), *(field(3, each) for each in inputs)]
    return field(1, b"".join(parts) + b"".join(entry(5, *each) for each in attributes.items()))


def save(path: Path, factor: float) -> ModelFiles:
    """A SavedModel: y = factor * x, for x of FP32 and shape [-1, 3]."""
    kind = field(6, FLOAT)
    constant = field(1, FLOAT) + field(2, shape(1)) + field(4, np.float32([factor]).tobytes())
    nodes = [
        node("serving_x", "Placeholder", dtype=kind, shape=field(7, shape(-1, 3))),
        node("factor", "Const", dtype=kind, value=field(8, constant)),
        node("out", "Mul", "serving_x", "factor", T=kind),
    ]
    info = field(2, FLOAT) + field(3, shape(-1, 3))
    signature = entry(1, "x", field(1, "serving_x:0") + info)
    signature += entry(2, "y", field(1, "out:0") + info)
    signature += field(3, "tensorflow/serving/predict")
    meta = field(1, field(4, "serve")) + field(2, b"".join(nodes) + field(4, field(1, 1882)))
    path.mkdir(parents=True)
    meta += entry(5, "serving_default", signature)
    (path / "saved_model.pb").write_bytes(field(1, 1) + field(2, meta))
    return files(path, Runtime.SAVED_MODEL)
