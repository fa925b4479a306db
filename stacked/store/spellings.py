"""Names of tensors as trainers write them, read as the names that PEFT writes.

Torch's wrappers add parts to every name below them, a raw state dict has the adapter's name in it,
and a training framework may add its own prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stacked.errors import ModuleUnknown
from stacked.store.files import WEIGHTS_FILE
from stacked.store.pairs import PREFIX
from stacked.store.text import quoted

# torch.compile, FSDP, activation checkpointing, Lightning: no module of a checkpoint is called so.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
_HALVES = frozenset({"lora_A", "lora_B"})
_EMBEDDING_HALVES = frozenset({"lora_embedding_A", "lora_embedding_B"})


@dataclass(frozen=True, slots=True)
class Spelling:
    """A parsed tensor name. `written` is the module as in the file, without PREFIX."""

    written: str
    module: str
    ending: str
    """`lora_A.weight`, `lora_embedding_B`, or the part below a module of the base: `weight`."""
    adapter: str = ""
    """The adapter's name between the two, which PEFT leaves out."""

    @property
    def is_lora(self) -> bool:
        return self.ending.startswith("lora_")

    @property
    def plain(self) -> str:
        """The name that PEFT gives such a tensor."""
        return f"{PREFIX}{self.module}.{self.ending}"


def spell(name: str, is_known: Callable[[str], bool]) -> Spelling | None:
    """Parse a name; None if it is neither LoRA's nor one of a checkpoint.

    `is_known`: whether the base has a module of that name. `module.`, the only trace of DDP, is a
    wrapper only if the name is the base's without it.
    """
    parts = (name.partition(PREFIX)[2] or name).split(".")
    at = next(
        (i for i in range(len(parts) - 1, 0, -1) if parts[i] in _HALVES | _EMBEDDING_HALVES), None
    )
    if at is None:
        below = [part for part in parts[:-1] if part != "base_layer"]
        if parts[-1] not in ("weight", "bias") or not below:
            return None
        return Spelling(".".join(below), unwrapped(below, is_known), parts[-1])
    rest = [part for part in parts[at + 1 :] if part not in _WRAPPERS]
    end = ["weight"] if parts[at] in _HALVES else []
    if (rest[-1:] == ["weight"]) != bool(end) or len(rest) > len(end) + 1:
        return None
    return Spelling(
        written=".".join(parts[:at]),
        module=unwrapped(parts[:at], is_known),
        ending=".".join([parts[at], *end]),
        adapter=rest[0] if len(rest) > len(end) else "",
    )


def unwrapped(parts: list[str], is_known: Callable[[str], bool]) -> str:
    """The name of a module without the wrappers around it."""
    name = ".".join(parts)
    if is_known(name):
        return name
    name = ".".join(part for part in parts if part not in _WRAPPERS)
    bare = ".".join(part for part in parts if part not in _WRAPPERS and part != "module")
    return bare if is_known(bare) else name


def one_adapter(spellings: Iterable[Spelling | None]) -> None:
    """Raise ModuleUnknown if the tensors of several adapters are in one file."""
    names = sorted({found.adapter for found in spellings if found and found.is_lora})
    if len(names) > 1:
        listed = ", ".join(quoted(name, 40) if name else "one without a name" for name in names[:5])
        raise ModuleUnknown(
            f"{WEIGHTS_FILE} holds the tensors of {len(names)} adapters ({listed}); save each "
            "alone, with PEFT's save_pretrained(…, selected_adapters=[…])"
        )
