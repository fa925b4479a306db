"""Tensor names of an adapter, and the two halves of each module that it adapts.

Names as trainers write them are read as those that PEFT writes: torch's wrappers add parts to every
name below them, a raw state dict has the adapter's name in it, and a training framework may add its
own prefix.

vLLM reads the names in vllm/lora/utils.py and vllm/lora/lora_model.py (0.32.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stacked.errors import AdapterUnsupported, ModuleUnknown, PairIncomplete, WeightsInvalid
from stacked.store.files import WEIGHTS_FILE
from stacked.store.tensors import FLOATS, Tensor
from stacked.store.text import quoted

PREFIX = "base_model.model."
# Parts of tensor names that PEFT writes for anything but plain LoRA, and their description.
_FOREIGN = {
    "lora_magnitude_vector": "DoRA",
    "modules_to_save": "a fully trained module (modules_to_save)",
    "original_module": "a fully trained module (modules_to_save)",
    "token_adapter": "trainable tokens",
    "trainable_tokens_delta": "trainable tokens",
    "lora_velora_embed": "VeLoRA",
    "lora_diag": "KaSA",
}
# The same for other trainers, with what to do with such a file.
_OTHERS = {
    "_flat_param": "FSDP's flattened parameters; gather them before saving (FULL_STATE_DICT)",
    "lora_a": "MLX's; convert the adapter to PEFT's layout, which has both halves the other way up",
    "lora_b": "MLX's; convert the adapter to PEFT's layout, which has both halves the other way up",
    "lora_down": "kohya's; convert the adapter to PEFT's names, its alpha into adapter_config.json",
    "lora_up": "kohya's; convert the adapter to PEFT's names, its alpha into adapter_config.json",
    "alpha": "kohya's; convert the adapter to PEFT's names, its alpha into adapter_config.json",
    "linear_in": "Megatron's or NeMo's; export the adapter for Hugging Face",
    "linear_out": "Megatron's or NeMo's; export the adapter for Hugging Face",
}
# torch.compile, FSDP, activation checkpointing, Lightning: no module of a checkpoint is called so.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
_HALVES = frozenset({"lora_A", "lora_B"})
_EMBEDDING_HALVES = frozenset({"lora_embedding_A", "lora_embedding_B"})


@dataclass(frozen=True, slots=True)
class Pair:
    """The two halves of one adapted module."""

    module: str
    a: Tensor
    b: Tensor
    is_embedding: bool


def pair_up(tensors: dict[str, Tensor]) -> dict[str, Pair]:
    """The adapted modules by name, both halves of each.

    Raises WeightsInvalid (no tensors, an integer type, one half twice), AdapterUnsupported or
    ModuleUnknown (a name that is no LoRA tensor) and PairIncomplete.
    """
    halves: dict[str, dict[str, tuple[Tensor, bool]]] = {}
    for tensor in tensors.values():
        if tensor.dtype not in FLOATS:
            raise WeightsInvalid(
                f"{WEIGHTS_FILE}: tensor {quoted(tensor.name)} has type {tensor.dtype}; expected "
                f"one of {', '.join(FLOATS)}"
            )
        module, half, is_embedding = parse_name(tensor.name)
        other = halves.setdefault(module, {}).setdefault(half, (tensor, is_embedding))
        if other[0] is not tensor:
            raise WeightsInvalid(
                f"{WEIGHTS_FILE}: {quoted(other[0].name)} and {quoted(tensor.name)} are both "
                f"lora_{half} of one module; keep one"
            )
    if not halves:
        raise WeightsInvalid(
            f"{WEIGHTS_FILE} holds no tensors, so it would change nothing; save the adapter again "
            "(with ZeRO-3 or FSDP, gather the weights first)"
        )
    return {module: _pair(module, found) for module, found in halves.items()}


def parse_name(name: str) -> tuple[str, str, bool]:
    """Module, half (`A` or `B`) and whether it is an embedding's, from a tensor's name.

    The spellings that vLLM accepts: with `base_model.model.` before the module or without it.
    """
    parts = name.removeprefix(PREFIX).split(".")
    if len(parts) > 2 and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):
        return ".".join(parts[:-2]), parts[-2][-1], False
    if len(parts) > 1 and parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
        return ".".join(parts[:-1]), parts[-1][-1], True
    raise _foreign_name(name, parts)


def _foreign_name(name: str, parts: list[str]) -> AdapterUnsupported | ModuleUnknown:
    where = f"{WEIGHTS_FILE}: tensor {quoted(name, 200)}"
    for part in parts:
        if part in _FOREIGN:
            return AdapterUnsupported(f"{where} belongs to {_FOREIGN[part]}, which is not served")
    if parts[-1] == "bias":
        return AdapterUnsupported(f"{where} is a trained bias; biases are not served")
    for part in parts[-2:]:
        if part in _OTHERS:
            return ModuleUnknown(f"{where} has a name of {_OTHERS[part]}")
    if parts[-2:] == ["base_layer", "weight"]:
        return AdapterUnsupported(
            f"{where} is a copy of a layer that the base's checkpoint does not have by that name; "
            "save the adapter with save_pretrained(…, save_embedding_layers=False)"
        )
    return ModuleUnknown(
        f"{where} is not a LoRA weight (…lora_A.weight, …lora_B.weight, …lora_embedding_A or "
        "…lora_embedding_B), so it would be ignored; save the adapter alone, with PEFT"
    )


def _pair(module: str, found: dict[str, tuple[Tensor, bool]]) -> Pair:
    if len(found) < 2:
        (half,) = found
        missing = "B" if half == "A" else "A"
        raise PairIncomplete(
            f"{WEIGHTS_FILE}: module {quoted(module)} has lora_{half} but no lora_{missing}; "
            "save the adapter again"
        )
    (a, a_embedding), (b, b_embedding) = found["A"], found["B"]
    if a_embedding != b_embedding:
        raise PairIncomplete(
            f"{WEIGHTS_FILE}: module {quoted(module)} has one half as an embedding's and the other "
            f"as a linear layer's ({quoted(a.name)}, {quoted(b.name)}); save the adapter again"
        )
    return Pair(module, a, b, a_embedding)


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
