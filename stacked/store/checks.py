"""Whether the weights of an adapter fit one base: names, pairs, shapes, types and values.

And whether the files of a stored adapter are still those that were checked when it was added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from stacked.chat import ChatTemplates, stored_chat
from stacked.core import Adapter, Digest
from stacked.errors import (
    AdapterError,
    AdapterTooLarge,
    AdapterUnsupported,
    AdapterWithoutEffect,
    ModuleUnknown,
    ShapeMismatch,
    StoreDamaged,
    ValueNotFinite,
    ValueTooLarge,
)
from stacked.store.adaptable import Adaptable, Shape
from stacked.store.base import EMBEDDING_NAMES, BaseModules
from stacked.store.digest import digest_of, no_pause, sent_digest
from stacked.store.files import CONFIG_FILE, WEIGHTS_FILE
from stacked.store.limits import DEFAULT, Limits
from stacked.store.pairs import PREFIX, Pair, pair_up
from stacked.store.peft_config import PeftConfig, check_rank, parse_config
from stacked.store.tensors import (
    BOUND,
    FLOATS,
    Tensor,
    Values,
    is_finite,
    is_within_bound,
    is_zero,
    largest,
    read_header,
)
from stacked.store.text import quoted, size


@dataclass(frozen=True, slots=True)
class Report:
    """What was found about an adapter that may be served.

    `rank` is what the engine's max_lora_rank must reach, `modules` how many modules are adapted,
    `bytes` the size of the weights file. `warnings` are for people to read and do not
    refuse anything.
    """

    digest: Digest
    rank: int
    target_modules: tuple[str, ...]
    modules: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    base: str = ""
    chat: ChatTemplates | None = None
    """Its own chat templates."""
    warnings: tuple[str, ...] = ()

    def adapter(self, path: Path) -> Adapter:
        """The adapter at `path`, as the rest of the system knows it."""
        return Adapter(self.digest, path, self.bytes, self.rank, self.target_modules, self.base)


def check_directory(
    directory: Path,
    base: BaseModules,
    max_rank: int | None,
    limits: Limits = DEFAULT,
    *,
    digest: Digest | None = None,
    known_values: bool = False,
) -> tuple[PeftConfig, Report]:
    """Run every check on a directory that no one else can write to.

    Raises the AdapterError of the first check that fails: config, rank, weights file, names,
    pairs, shapes, values. Give `digest` if it was just computed, `known_values` if the values were
    checked before.
    """
    config = read_config(directory, limits)
    check_rank(config, max_rank)
    weights = directory / WEIGHTS_FILE
    tensors = read_header(weights, limits)
    pairs = pair_up(tensors)
    places = _check_modules(pairs, base)
    ranks = config.ranks(pairs)
    for module, pair in pairs.items():
        _check_shape(pair, places[module], ranks[module], base)
    with Values(weights) as values:
        if not known_values:
            _check_values(values, tensors)
        _check_effect(values, pairs, config)
    return config, report_of(config, directory, pairs, digest=digest)


def check_alone(directory: Path, limits: Limits = DEFAULT) -> Digest:
    """Run the checks of `check_directory` that need no base. Raises what it raises.

    Returns the digest to send it under, see `sent_digest`. Names are not checked: with the base
    they may be normalised, see `stacked.store.plain`.
    """
    config = read_config(directory, limits)
    check_rank(config, None)
    _check_file(directory / WEIGHTS_FILE, limits)
    return sent_digest(config, directory)


def check_content(adapter: Adapter, pause: Callable[[], None] = no_pause) -> None:
    """Hash the adapter's files in place; tenths of a second for 100 MB. Raises StoreDamaged.

    The same digest means that all earlier checks hold: they were made on the same bytes.
    """
    try:
        found = digest_of(read_config(adapter.path), adapter.path, pause)
    except (AdapterError, OSError) as error:
        raise damaged(adapter.digest, adapter.path, f"cannot be read any more ({error})") from error
    if found != adapter.digest:
        raise damaged(adapter.digest, adapter.path, f"has the content of {found} now")


def check_stored(adapter: Adapter, pause: Callable[[], None] = no_pause) -> None:
    """`check_content`, and the values once more: an earlier version had wider bounds for them.

    That takes a tenth of the time. Raises ValueTooLarge too.
    """
    check_content(adapter, pause)
    try:
        _check_file(adapter.path / WEIGHTS_FILE, DEFAULT)
    except AdapterError as error:
        raise type(error)(f"stored adapter {adapter.digest}: {error}") from error


def damaged(digest: Digest, path: Path, why: str) -> StoreDamaged:
    """The error of an adapter that is not what was stored."""
    return StoreDamaged(
        f"stored adapter {digest} {why}; add it again from its source, or remove {path}"
    )


def modules_of(adapter: Adapter) -> list[str]:
    """The names of a stored adapter's modules, as its tensors spell them. Raises AdapterError."""
    return list(pair_up(read_header(adapter.path / WEIGHTS_FILE, DEFAULT)))


def read_config(directory: Path, limits: Limits = DEFAULT) -> PeftConfig:
    """The checked adapter_config.json of a directory."""
    path = directory / CONFIG_FILE
    length = path.stat().st_size
    if length > limits.max_config_bytes:
        raise AdapterTooLarge(
            f"{CONFIG_FILE} has {size(length)}; at most {size(limits.max_config_bytes)} are read"
        )
    return parse_config(path.read_bytes())


def report_of(
    config: PeftConfig,
    directory: Path,
    pairs: dict[str, Pair],
    *,
    digest: Digest | None = None,
) -> Report:
    """A report from config and header. Hashes the files unless `digest` is given."""
    tensors = [half for pair in pairs.values() for half in (pair.a, pair.b)]
    names = sorted({pair.module.rpartition(".")[2] for pair in pairs.values()})
    return Report(
        digest=digest or digest_of(config, directory),
        rank=config.max_rank,
        target_modules=tuple(names),
        modules=len(pairs),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=(directory / WEIGHTS_FILE).stat().st_size,
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors})),
        base=config.base,
        chat=stored_chat(directory),
        warnings=(*config.warnings, *_warnings(config, names)),
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """The module of the base that a pair is for, and its shape; None if that is unknown."""

    is_embedding: bool
    shape: Shape | None


def _check_modules(pairs: dict[str, Pair], base: BaseModules) -> dict[str, _Place]:
    """The target of each pair. Every module must be one to which the engine applies the adapter."""
    adaptable = base.adaptable(pairs)
    places = _places(pairs, base, adaptable)
    unknown = [pair for module, pair in pairs.items() if module not in places]
    if unknown:
        first = unknown[0]
        raise ModuleUnknown(
            f"{WEIGHTS_FILE}: {len(unknown)} of {len(pairs)} adapted modules are not in base "
            f"{base}; the first is {quoted(first.module)} (tensor {quoted(first.a.name, 200)}). "
            f"{_explain(first.module, base)}"
        )
    if adaptable is not None:
        adaptable.check(pairs)
        return places
    for module in pairs:
        if not base.in_language_model(module):
            raise AdapterUnsupported(
                f"{WEIGHTS_FILE}: module {quoted(module)} is outside the language model "
                f"({quoted(base.language_prefix)}) of base {base}; adapters on other towers would "
                "be ignored. Train on the language model's layers alone"
            )
    return places


def _places(
    modules: Collection[str], base: BaseModules, adaptable: Adaptable | None
) -> dict[str, _Place]:
    """Each module under the checkpoint's name, or under another that the engine accepts for it."""

    def stored(name: str) -> _Place:
        return _Place(name in base.embeddings, base.modules[name])

    found = {module: stored(module) for module in modules if module in base.modules}
    if adaptable is None or len(found) == len(modules):
        return found
    spelt = {adaptable.name_of(name): name for name in base.modules}
    for module in modules:
        name = adaptable.name_of(module)
        if module not in found and name in spelt:
            found[module] = stored(spelt[name])
        elif module not in found and name in adaptable.modules:
            last = name.rpartition(".")[2]
            found[module] = _Place(last in EMBEDDING_NAMES, adaptable.modules[name])
    return found


def _explain(module: str, base: BaseModules) -> str:
    """Why a module may be missing: another wrapper's prefix, more layers, another architecture."""
    parts = module.split(".")
    # `layers.0.self_attn.q_proj` must agree: the last part says nothing about the prefix.
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    stack = max(number - 1, 0)
    for start in range(stack + 1):
        tail = ".".join(parts[start:])
        for name in base.modules:
            if name.endswith(f".{tail}") or name == tail:
                inner = ".".join(parts[stack:])
                expected, got = name.removesuffix(inner), module.removesuffix(inner)
                return (
                    f"Names of this base begin with {quoted(expected)}, the adapter's with "
                    f"{quoted(got)}: it was trained on another wrapper of the model, and would be "
                    f"loaded but never applied. Rename its tensors to {quoted(PREFIX + name)}…"
                )
    last = parts[-1]
    if base.layers and any(name.endswith(f".{last}") for name in base.modules):
        return f"The base has {base.layers} layers; was the adapter trained on another size of it?"
    return "Was the adapter trained on this base?"


def _check_shape(pair: Pair, place: _Place, rank: int, base: BaseModules) -> None:
    if pair.is_embedding != place.is_embedding:
        is_, as_ = ("is not", "an embedding's") if pair.is_embedding else ("is", "a linear layer's")
        raise ShapeMismatch(
            f"{WEIGHTS_FILE}: module {quoted(pair.module)} of base {base} {is_} an embedding, but "
            f"the adapter's tensors are {as_}"
        )
    for tensor, expected in zip((pair.a, pair.b), _expected(pair, rank, place.shape), strict=True):
        if len(tensor.shape) == 2 and all(
            want in (None, have) for want, have in zip(expected, tensor.shape, strict=True)
        ):
            continue
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        advice = ""
        if len(tensor.shape) < 2 or 0 in tensor.shape:
            advice = ". The weights were not gathered when they were saved (ZeRO-3, FSDP)"
        raise ShapeMismatch(
            f"{WEIGHTS_FILE}: tensor {quoted(tensor.name, 200)} has shape {list(tensor.shape)}; "
            f"expected [{wanted}] for rank {rank} ({CONFIG_FILE}) and base {base}{advice}"
        )


def _expected(
    pair: Pair, rank: int, shape: Shape | None
) -> tuple[tuple[int | None, int | None], tuple[int | None, int | None]]:
    """Shapes of lora_A and lora_B; None: any, as a quantised base does not tell."""
    rows, columns = shape or (None, None)
    if pair.is_embedding:  # (num_embeddings, dim): the token picks a column of A
        return (rank, rows), (columns, rank)
    return (rank, columns), (rows, rank)


def _check_file(weights: Path, limits: Limits) -> None:
    tensors = read_header(weights, limits)
    with Values(weights) as values:
        _check_values(values, {n: t for n, t in tensors.items() if t.dtype in FLOATS})


def _check_values(values: Values, tensors: dict[str, Tensor]) -> None:
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) == 1 and is_within_bound(values.all_bits(tensors), FLOATS[kinds.pop()]):
        return
    for tensor in tensors.values():
        bits, kind = values.bits(tensor), FLOATS[tensor.dtype]
        if is_within_bound(bits, kind):
            continue
        why = "training diverged, or the file is damaged. Take an earlier checkpoint"
        name = quoted(tensor.name, 200)
        if not is_finite(bits, kind):
            raise ValueNotFinite(f"{WEIGHTS_FILE}: tensor {name} holds NaN or infinity; {why}")
        raise ValueTooLarge(
            f"{WEIGHTS_FILE}: tensor {name} holds a value of magnitude {largest(bits, kind):.6g}; "
            f"expected at most {BOUND}: {why}"
        )


def _check_effect(values: Values, pairs: dict[str, Pair], config: PeftConfig) -> None:
    """Raises AdapterWithoutEffect if the adapter adds nothing to any module."""

    def zero(tensor: Tensor) -> bool:
        return is_zero(values.bits(tensor), FLOATS[tensor.dtype])

    # lora_B starts as zero in training, so it decides most often.
    if config.alpha == 0 or all(zero(pair.b) or zero(pair.a) for pair in pairs.values()):
        raise AdapterWithoutEffect(
            f"{WEIGHTS_FILE}: the weights multiply to zero in every module, so the adapter would "
            "answer as the base does. Was it saved before training?"
        )


def _warnings(config: PeftConfig, names: list[str]) -> Iterator[str]:
    absent = sorted({target.rpartition(".")[2] for target in config.targets} - set(names))
    if absent:
        yield (
            f"{CONFIG_FILE} targets {', '.join(quoted(name, 40) for name in absent[:5])}, "
            "but no tensor is for it"
        )
