"""Copies of the base's own weights in an adapter: whether they are really the base's.

PEFT saves the embedding with every adapter that targets it (`save_embedding_layers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stacked.errors import AdapterUnsupported
from stacked.store.base import BaseModules, checkpoint
from stacked.store.files import WEIGHTS_FILE
from stacked.store.tensors import Tensor, Values
from stacked.store.text import quoted

_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""numpy's names of the types that it has."""
_CHUNK = 1 << 20  # elements compared at a time: a few MiB


@dataclass(frozen=True, slots=True)
class Original:
    """A tensor of the base and the file that it is in."""

    file: Path
    tensor: Tensor


def originals(base: BaseModules) -> dict[str, Original]:
    """The base's tensors by name; a tied output layer has the embedding's.

    Raises BaseNotFound.
    """
    if base.directory is None:
        return {}
    found = {name: Original(*held) for name, held in checkpoint(base.directory).items()}
    embedding = next(
        (
            found.get(f"{name}.weight")
            for name in sorted(base.embeddings)
            if name.startswith(base.language_prefix)
        ),
        None,
    )
    for head in (name for name in base.modules if name.rpartition(".")[2] == "lm_head"):
        if embedding is not None:
            found.setdefault(f"{head}.weight", embedding)
    return found


def refuse_changed(
    weights: Path,
    copies: Iterable[tuple[Tensor, str]],
    of: Mapping[str, Original],
    base: BaseModules,
) -> None:
    """Raise AdapterUnsupported if a tensor of an adapter differs from the base's.

    `copies`: tensors of `weights`, each with the key in `of` of its original. They are compared in
    the copy's type, which may be wider than the base's, or narrower, with rounded values.
    """
    with Values(weights) as values:
        for copy, name in copies:
            original = of[name].tensor
            where = (
                f"{WEIGHTS_FILE}: tensor {quoted(copy.name, 200)} is a copy of {quoted(name)} of "
                f"base {base}"
            )
            if not {copy.dtype, original.dtype} <= _NUMBERS.keys() | {"BF16"}:
                raise AdapterUnsupported(
                    f"{where}, of type {copy.dtype} and {original.dtype}, which cannot be "
                    "compared; save the adapter with save_embedding_layers=False"
                )
            if 0 in copy.shape:
                raise AdapterUnsupported(
                    f"{where}, but empty: the weights were not gathered when they were saved "
                    "(ZeRO-3, FSDP). Gather them, or save with save_embedding_layers=False"
                )
            if copy.shape != original.shape:
                raise AdapterUnsupported(
                    f"{where}, but its shape is {list(copy.shape)} and the base's is "
                    f"{list(original.shape)}; an adapter cannot bring tokens of its own. Merge it "
                    "into its base and serve that, or train without new tokens"
                )
            with Values(of[name].file) as base_values:
                differ, rows = _rows_that_differ(values, copy, base_values, original)
            if differ:
                raise AdapterUnsupported(
                    f"{where}, but {differ} of {rows} rows differ: it was trained too, or the "
                    "adapter is another base's. Merge the adapter into its base and serve that; or "
                    "save it with save_embedding_layers=False if the change is not meant"
                )


def _rows_that_differ(
    values: Values, copy: Tensor, base_values: Values, original: Tensor
) -> tuple[int, int]:
    """How many rows differ, and how many there are."""
    rows = copy.shape[0] if copy.shape else 1
    mine = values.bits(copy).reshape(rows, -1)
    theirs = base_values.bits(original).reshape(rows, -1)
    step = max(_CHUNK // max(mine.shape[1], 1), 1)
    differ = 0
    for at in range(0, rows, step):
        part, of = mine[at : at + step], theirs[at : at + step]
        if copy.dtype == original.dtype and np.array_equal(part, of):
            continue
        expected = _rounded(_numbers(of, original.dtype), copy.dtype)
        differ += int((_numbers(part, copy.dtype) != expected).any(axis=1).sum())
    return differ, rows


def _numbers(bits: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Bits as numbers that numpy has, exactly."""
    if dtype == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.view(_NUMBERS[dtype])


def _rounded(numbers: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Numbers as they are after a conversion to `dtype`, to nearest even as torch rounds."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return numbers.astype(_NUMBERS[dtype])
    bits = numbers.astype("<f4").view("<u4")
    nearest: np.ndarray[Any, Any] = bits + 0x7FFF + ((bits >> 16) & 1)
    return (nearest & np.uint32(0xFFFF_0000)).view("<f4")
