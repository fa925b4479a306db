"""Normalises an adapter as its trainer saved it to the one that PEFT would have saved.

Names lose what wrappers and raw state dicts add, copies of the base's own weights are left out if
they equal the base's, and patterns that the engine would search for too long are replaced by the
names that they match. Everything else is unchanged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stacked.errors import AdapterConfigInvalid, ModuleUnknown, WeightsInvalid
from stacked.store.base import BaseModules
from stacked.store.checks import read_config
from stacked.store.copies import originals, refuse_changed
from stacked.store.files import CONFIG_FILE, WEIGHTS_FILE
from stacked.store.limits import Limits
from stacked.store.pairs import PREFIX, Spelling, one_adapter, spell, unwrapped
from stacked.store.patterns import FEW, first_matches, is_plain
from stacked.store.peft_config import PeftConfig
from stacked.store.targets import check_targets
from stacked.store.tensors import FLOATS, Tensor, read_header, write_file
from stacked.store.text import quoted, size

logger = logging.getLogger(__name__)

_LONGEST = 1024
"""Characters of a module's name, wrappers included."""


def make_plain(directory: Path, base: BaseModules, limits: Limits) -> None:
    """Normalise the files of a private directory.

    What cannot be normalised is left for the checks to refuse. Raises AdapterConfigInvalid,
    AdapterUnsupported, ModuleUnknown, WeightsInvalid, BaseNotFound.
    """
    config = read_config(directory, limits)
    weights = directory / WEIGHTS_FILE
    tensors = read_header(weights, limits)
    spelt = {name: spell(name, base.modules.__contains__) for name in tensors}
    one_adapter(spelt.values())
    _write_weights(
        weights, tensors, _renamed(_without_copies(weights, tensors, spelt, base), spelt)
    )
    lora = [found for found in spelt.values() if found is not None and found.is_lora]
    modules = {found.written: found.module for found in lora}
    _check_lengths(modules)
    check_targets(config, modules)
    _write_config(directory / CONFIG_FILE, config, _plain_config(config, modules, base), limits)


def _write_weights(
    weights: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, Tensor]
) -> None:
    if plain.keys() == tensors.keys():
        return
    if any(tensor.dtype not in FLOATS for tensor in plain.values()):
        return  # refused by the checks
    made = weights.with_name(f"{WEIGHTS_FILE}.plain")
    write_file(weights, made, plain)
    made.replace(weights)
    logger.info("%d tensors renamed or left out", len(tensors.keys() - plain.keys()))


def _write_config(path: Path, config: PeftConfig, plain: PeftConfig, limits: Limits) -> None:
    if plain is config:
        return
    stored = plain.stored()
    if len(stored) > limits.max_config_bytes:
        raise AdapterConfigInvalid(
            f"{CONFIG_FILE}: the patterns give so many modules a value of their own that the file "
            f"would have {size(len(stored))}; at most {size(limits.max_config_bytes)} are read. "
            f"Use at most {FEW} patterns, of names only"
        )
    path.write_bytes(stored)


def _check_lengths(modules: Mapping[str, str]) -> None:
    """Expressions are matched against these names, in a time that grows with them."""
    for name in modules:
        if len(name) > _LONGEST:
            raise ModuleUnknown(
                f"{WEIGHTS_FILE}: module {quoted(name)} has a name of {len(name)} characters; no "
                f"base has one of more than {_LONGEST}. Save the adapter again"
            )


def _without_copies(
    weights: Path,
    tensors: Mapping[str, Tensor],
    spelt: Mapping[str, Spelling | None],
    base: BaseModules,
) -> dict[str, Tensor]:
    """The tensors without copies of the base's; refuses copies that differ from the base's."""
    others = {name: found for name, found in spelt.items() if found and not found.is_lora}
    if not others:
        return dict(tensors)
    table = originals(base)
    copies: dict[str, str] = {}
    for name, found in others.items():
        for module in (found.module, found.written):
            if f"{module}.{found.ending}" in table:
                copies[name] = f"{module}.{found.ending}"
    refuse_changed(weights, ((tensors[name], of) for name, of in copies.items()), table, base)
    return {name: tensor for name, tensor in tensors.items() if name not in copies}


def _renamed(
    tensors: Mapping[str, Tensor], spelt: Mapping[str, Spelling | None]
) -> dict[str, Tensor]:
    """The tensors by their normalised names; those in order stay, with PEFT's prefix or without."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = spelt[name]
        plain = found.plain if found is not None and found.is_lora else name
        if plain == PREFIX + name:
            plain = name
        if plain in renamed:
            raise WeightsInvalid(
                f"{WEIGHTS_FILE}: {quoted(renamed[plain].name)} and {quoted(name)} are both "
                f"{quoted(plain)}; keep one"
            )
        renamed[plain] = tensor
    return renamed


def _plain_config(config: PeftConfig, modules: Mapping[str, str], base: BaseModules) -> PeftConfig:
    """The config for the normalised names. `modules`: these, by the trainer's names."""
    changes: dict[str, Any] = {}
    for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        values = _by_module(key, config.raw.get(key, {}), config.raw[default], modules)
        if values is not None:
            changes[key] = _grouped(values, config.raw[default])
    is_known = base.modules.__contains__
    bare = {target: unwrapped(target.split("."), is_known) for target in config.targets}
    targets = tuple(sorted({new or old for old, new in bare.items()}))
    if changes or targets != config.targets:
        return replace(config, raw={**config.raw, **changes}, targets=targets)
    return config


def _by_module(
    key: str, pattern: Mapping[str, Any], default: Any, modules: Mapping[str, str]
) -> dict[str, Any] | None:
    """The value of each normalised name; None if the engine finds it in the patterns quickly."""
    found = first_matches(key, pattern, {*modules, *modules.values()})
    values: dict[str, Any] = {}
    as_it_is = len(pattern) <= FEW and all(map(is_plain, pattern))
    for written, module in modules.items():
        matches = [found[name] for name in (written, module) if name in found]
        value = pattern[matches[0]] if matches else default
        if matches and pattern[matches[-1]] != value:
            raise AdapterConfigInvalid(
                f"{CONFIG_FILE} {key}: {quoted(written)} of the weights is {quoted(module)} of the "
                f"base, but {quoted(matches[0])} is for the one and {quoted(matches[-1])} for the "
                "other; keep one of them"
            )
        found_by_engine = pattern[found[module]] if module in found else default
        as_it_is = as_it_is and found_by_engine == value
        values[module] = value
    return None if as_it_is else values


def _grouped(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """A pattern with one expression for each value, which matches the names that have it.

    The last part of a name if all names that end in it agree, otherwise the whole name.
    """
    by_end: dict[str, set[Any]] = {}
    for module, value in values.items():
        by_end.setdefault(module.rpartition(".")[2], set()).add(value)
    groups: dict[Any, dict[str, None]] = {}
    for module, value in sorted(values.items()):
        end = module.rpartition(".")[2]
        name = re.escape(end) if len(by_end[end]) == 1 else f"^{re.escape(module)}"
        if value != default:
            groups.setdefault(value, {})[name] = None
    return {"|".join(names): value for value, names in groups.items()}
