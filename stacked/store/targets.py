"""Whether the config of an adapter selects the modules that its weights are for, by PEFT's rule.

PEFT ignores weights of other modules, vLLM applies them: the answers would differ. The rule is in
peft/tuners/tuners_utils.py (0.21), check_target_module_exists.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from stacked.errors import AdapterConfigInvalid
from stacked.store.base import EMBEDDING_NAMES
from stacked.store.files import CONFIG_FILE, WEIGHTS_FILE
from stacked.store.patterns import whole_matches
from stacked.store.peft_config import PeftConfig
from stacked.store.text import quoted, shown

_FEW = 8
_ALL_LINEAR = "all-linear"
_NOT_LINEAR = EMBEDDING_NAMES | {"lm_head"}


def check_targets(config: PeftConfig, modules: Mapping[str, str]) -> None:
    """Raise AdapterConfigInvalid if PEFT would ignore a module that has weights.

    `modules`: the base's modules by the trainer's names; either name may match.
    """
    names = {*modules, *modules.values()}
    targets = config.targets or str(config.raw["target_modules"])
    meant = _named(targets, "target_modules", names)
    meant -= _named(config.raw.get("exclude_modules") or (), "exclude_modules", names)
    if config.targets:
        meant = {name for name in meant if _is_of_layers(name, config.raw)}
    absent = [name for name, module in modules.items() if not {name, module} & meant]
    if absent:
        needed = sorted({module.rpartition(".")[2] for module in modules.values()})
        raise AdapterConfigInvalid(
            f"{CONFIG_FILE} leaves out {len(absent)} of the {len(modules)} modules that "
            f"{WEIGHTS_FILE} has, the first {quoted(absent[0])}; PEFT would not apply them. Set "
            f'"target_modules" to {quoted(", ".join(needed), 200)}, without exclude_modules and '
            "layers_to_transform, or remove their tensors"
        )


def _named(targets: Any, key: str, names: Collection[str]) -> set[str]:
    """The names that a list of suffixes selects, or a pattern for the whole name."""
    if isinstance(targets, str):
        if targets.lower() == _ALL_LINEAR:
            return {name for name in names if name.rpartition(".")[2] not in _NOT_LINEAR}
        return whole_matches(key, targets, names)
    if not isinstance(targets, list | tuple):
        raise AdapterConfigInvalid(
            f'{CONFIG_FILE} "{key}" is {shown(targets)}; expected a list of names or a pattern'
        )
    ends = frozenset(map(str, targets))
    return {name for name in names if not ends.isdisjoint(_ends(name))}


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _is_of_layers(name: str, raw: Mapping[str, Any]) -> bool:
    """Whether a module's layer is in `layers_to_transform`, if that is set."""
    layers = raw.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = raw.get("layers_pattern") or []
    patterns = patterns if isinstance(patterns, list) else [patterns]
    if len(patterns) > _FEW or not all(_is_word(pattern) for pattern in patterns):
        return True  # nobody writes one, and it is not worth bounding
    before = "|".join(rf"(?:^|.*?\.){pattern}" for pattern in patterns) or r".*?\.[^.]*"
    found = re.match(rf"(?:{before})\.(\d+)\.", name)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _is_word(pattern: Any) -> bool:
    return isinstance(pattern, str) and re.fullmatch(r"\w{1,100}", pattern) is not None
