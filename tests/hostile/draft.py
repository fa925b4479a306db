"""An adapter in parts, as the mutators change it, and as the bytes of its files.

It must not know the package under test.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Files = dict[str, bytes]
T = TypeVar("T")


@dataclass
class Draft:
    """A header's rows may name a tensor twice, so they are a list. `files` overrides the parts."""

    rows: list[tuple[str, Any]]
    data: bytes
    config: dict[str, Any]
    metadata: Any = field(default_factory=lambda: {"format": "pt"})
    files: Files = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path) -> Draft:
        """A healthy adapter's directory, as `tests/tiny.py` or PEFT writes it."""
        weights = (directory / WEIGHTS).read_bytes()
        length = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + length])
        header.pop("__metadata__", None)
        config = json.loads((directory / CONFIG).read_bytes())
        return cls([*header.items()], weights[8 + length :], config)

    def header(self) -> bytes:
        rows = [("__metadata__", self.metadata)] if self.metadata is not None else []
        parts = (f"{json.dumps(name)}:{json.dumps(row)}" for name, row in [*rows, *self.rows])
        text = ("{" + ",".join(parts) + "}").encode()
        return text + b" " * (-len(text) % 8)

    def weights(self, header: bytes | None = None, length: int | None = None) -> bytes:
        text = self.header() if header is None else header
        announced = len(text) if length is None else length
        return announced.to_bytes(8, "little") + text + self.data

    def written(self) -> Files:
        """Every file by its name relative to the adapter's folder."""
        made = {CONFIG: json.dumps(self.config, indent=1).encode(), WEIGHTS: self.weights()}
        return {**made, **self.files}


Mutator = Callable[[random.Random, Draft], str]
"""Changes a draft, and returns what it did."""


def pick(rng: random.Random, values: Sequence[T]) -> T:
    return values[rng.randrange(len(values))]


def flipped(rng: random.Random, data: bytes, most: int = 8) -> bytes:
    """The bytes with a few of them changed."""
    content = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def nested(rng: random.Random, depth: int) -> str:
    """JSON that is nothing but depth."""
    opened, closed = pick(rng, (("[", "]"), ('{"a":', "}")))
    return opened * depth + "1" + closed * depth


def many_keys(count: int, text: str) -> bytes:
    """A JSON object with many keys in front, of which the last is there twice."""
    rows = "".join(f'"{number}":0,' for number in range(count))
    return ("{" + rows + f'"{count - 1}":0,' + text[1:]).encode()


# What stands where a text, a number or a list was expected; for json.dumps, so NaN is one of them.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308,
    -1e308, 5e-324, -0.0, float("nan"), float("inf"), "", " ", "8", "\0", "\ud800", "\r\nx: y",
    "\x1b[31mred", "😀" * 1000, "a" * 100_000, "../../../etc/passwd", [], {}, [[]], [None],
    [1, "a"], {"": 1}, {"a": {"b": {}}}, [[[[[[[[]]]]]]]],
)  # fmt: skip
