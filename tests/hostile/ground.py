"""A store with a base and a healthy adapter, in which mutants are checked and counted."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stacked.store import AdapterStore, BaseModules
from tests.hostile.checking import Outcome, checked
from tests.hostile.draft import Draft
from tests.hostile.mutants import mutant
from tests.hostile.packing import OUTSIDE

WORDS = "not of any adapter"


@dataclass
class Ground:
    """`directory` is for mutants and the store alone; what else appears in it is a fault."""

    directory: Path
    base: Path
    healthy: Path
    seed: int
    max_rank: int = 16
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    peak_kib: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)  # it is meant so
        self.outside.write_text(WORDS)
        self._draft = Draft.of(self.healthy)
        self._modules = BaseModules.read(self.base)
        self._store = AdapterStore(self.directory / "store")

    @property
    def outside(self) -> Path:
        return self.directory / OUTSIDE

    def check(self, number: int) -> tuple[Path, Outcome, str]:
        """Check one mutant as a server would; its source, the outcome and what was done to it."""
        into = self.directory / "mutants" / str(number)
        source, how = mutant(self._draft, self.seed, number, into)

        def add() -> str:
            return self._store.add(str(source), base=self._modules, max_rank=self.max_rank).digest

        outcome = checked(add)
        self.counts[outcome.kind, outcome.detail if outcome.kind == "refused" else ""] += 1
        self.peak_kib = max(self.peak_kib, outcome.peak_kib)
        self.slowest = max(self.slowest, outcome.seconds)
        if outcome.is_fault:
            self.faults.append(f"{number}: {outcome.kind} {outcome.detail}: {how}")
        return source, outcome, how

    def drop(self, number: int) -> None:
        shutil.rmtree(self.directory / "mutants" / str(number))

    def astray(self) -> list[str]:
        """What is where nothing should be: outside the store, or left half-way in it."""
        found = [name for name in os.listdir(self.directory) if name not in self._places()]
        return [*found, *strays(self.directory / "store", self.outside)]

    def _places(self) -> set[str]:
        return {OUTSIDE, "mutants", "store", self.base.name, self.healthy.name}


def strays(store: Path, outside: Path) -> Iterator[str]:
    """What is where nothing should be: left half-way in a store, or written next to it."""
    yield from map(str, Path("/tmp").glob("stacked-hostile*"))
    yield from os.listdir(store / "staging")
    if outside.read_text() != WORDS:
        yield f"{OUTSIDE} was written to"
    known = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"}
    for adapter in (store / "adapters").iterdir():
        for file in adapter.rglob("*"):
            plain = file.is_file() and not file.is_symlink() and file.name in known
            if not plain or WORDS.encode() in file.read_bytes():
                yield str(file)
