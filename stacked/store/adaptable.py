"""What the engine's own class of a base applies adapters to, as a value: module names and shapes.

An engine or a probe of it reports this (`stacked.engine.adaptable`). Adapters are checked against
it, so that what an adapter has and what is applied are the same set.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import TypeAdapter

from stacked.errors import ModuleUnapplied

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Renames:
    """How the engine spells the names that checkpoints and PEFT write: rules applied in order.

    As `WeightsMapper` in vllm/model_executor/models/utils.py (0.32.0) does: expressions first, then
    parts, beginnings and ends, each at most once, each on the result of the previous one.
    """

    regex: tuple[tuple[str, int, str], ...] = ()
    """Expression, its flags, replacement."""
    part: tuple[tuple[str, str], ...] = ()
    prefix: tuple[tuple[str, str], ...] = ()
    suffix: tuple[tuple[str, str], ...] = ()

    def __call__(self, name: str) -> str:
        for pattern, flags, new in self.regex:
            name = re.sub(pattern, new, name, flags=flags)
        for old, new in self.part:
            name = name.replace(old, new, 1)
        for old, new in self.prefix:
            if name.startswith(old):
                name = new + name[len(old) :]
        for old, new in self.suffix:
            if name.endswith(old):
                name = name[: len(name) - len(old)] + new
        return name


@dataclass(frozen=True, slots=True)
class Adaptable:
    """Every module that adapters of one base are applied to, in the engine's spelling.

    `modules` maps it to (out_features, in_features), or to (num_embeddings, dim) for embeddings;
    None if the engine does not report it. `passed_by` has modules whose adapters the engine accepts
    and then bypasses, with the reason.
    """

    architecture: str
    modules: Mapping[str, Shape | None]
    passed_by: Mapping[str, str] = field(default_factory=dict)
    renames: Renames = field(default_factory=Renames)
    text_prefix: str = ""
    """The prefix of a language model that adapters may name without it."""

    def name_of(self, module: str) -> str:
        """The engine's name of a module, from that of an adapter or a checkpoint."""
        # Rules may match the end of a tensor's name, so they get a complete one.
        end = ".lora_A.weight"
        name = self.renames(module + end).removesuffix(end)
        if self.text_prefix and name not in self.modules:
            inner = name.removeprefix("model.")  # where a bare decoder is mounted
            for found in (self.text_prefix + name, self.text_prefix + inner):
                if found in self.modules or found in self.passed_by:
                    return found
        return name

    def check(self, modules: Collection[str]) -> None:
        """Raises ModuleUnapplied unless the engine applies adapters to all these modules."""
        names = {module: self.name_of(module) for module in modules}
        unapplied = [module for module, name in names.items() if name not in self.modules]
        if not unapplied:
            return
        kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", module) for module in unapplied))
        reasons = dict.fromkeys(
            self.passed_by[names[module]] for module in unapplied if names[module] in self.passed_by
        )
        because = f" ({'; '.join(reasons)})" if reasons else ""
        takes = sorted({name.rpartition(".")[2] for name in self.modules})
        raise ModuleUnapplied(
            f"{len(unapplied)} of {len(modules)} adapted modules would be passed over, and the "
            f"answers would be those of another adapter: vLLM's {self.architecture}, as it is "
            f"configured here, applies adapters to {', '.join(takes)} alone, and not to "
            f"{', '.join(kinds[:8])}{', …' if len(kinds) > 8 else ''}{because}. Train without "
            "these modules, or merge the adapter into the base"
        )

    def to_json(self) -> bytes:
        return _JSON.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Adaptable:
        """Raises ValueError for text that `to_json` did not write."""
        return _JSON.validate_json(text)


_JSON = TypeAdapter(Adaptable)


class Engine(Protocol):
    """Finds out what a base's engine applies adapters to; see `stacked.engine.adaptable`."""

    def known(self) -> Adaptable | None:
        """The stored answer, if any, at once."""

    def ask(self) -> Adaptable:
        """The answer of the engine's class; half a minute at first. Raises BaseUnsupported."""
