"""adapter_config.json: what is valid in it, the ranks it needs, and its canonical form.

vLLM reads the file in vllm/lora/peft_helper.py; its ranks are in vllm/config/lora.py (0.32.0).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stacked.errors import AdapterConfigInvalid, AdapterUnsupported, RankRefused
from stacked.store.files import CONFIG_FILE
from stacked.store.patterns import first_matches
from stacked.store.text import quoted, shown, unique_keys
from stacked.store.variants import INFORMATIONAL, refuse_variants, unknown_keys

RANK_LADDER = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's `max_lora_rank` may have. An adapter of rank 3 is served under 8."""

# Of trained adapters it is at most some thousands; weights are multiplied by it.
_LARGEST_ALPHA = 1_000_000

_FLAGS = ("use_rslora", "use_dora", "lora_bias", "use_qalora", "ensure_weight_tying")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A valid adapter_config.json of a plain LoRA."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names from target_modules; empty if it is a pattern, which only PEFT interprets."""
    rank_pattern: Mapping[str, int]
    """Regular expressions for the ends of modules' names; the first that matches counts."""
    raw: Mapping[str, Any]
    """The parsed file, unknown keys too, without nulls: null means not set."""
    warnings: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The adapter's name for its base: displayed, never relied on."""
        name = self.raw.get("base_model_name_or_path")
        return name[:255] if isinstance(name, str) else ""

    @property
    def max_rank(self) -> int:
        """The rank that the engine must allow: vLLM counts `r` even where patterns replace it."""
        return max([self.rank, *self.rank_pattern.values()])

    def ranks(self, modules: Collection[str]) -> dict[str, int]:
        """The rank of each of these modules. Raises AdapterConfigInvalid (see `first_matches`)."""
        found = first_matches("rank_pattern", self.rank_pattern, modules)
        return {
            module: self.rank_pattern[found[module]] if module in found else self.rank
            for module in modules
        }

    def stored(self) -> bytes:
        """The file as it is stored: the same values, in one spelling."""
        return (json.dumps(self._sorted(), indent=2) + "\n").encode("ascii")

    def canonical(self) -> bytes:
        """The part of the file that goes into the digest.

        Without informational keys and without nulls; keys sorted, and target_modules too, which is
        a set. The order inside rank_pattern and alpha_pattern stays: there the first match wins.
        """
        meant = {key: value for key, value in self._sorted().items() if key not in INFORMATIONAL}
        return json.dumps(meant, separators=(",", ":")).encode("ascii")

    def _sorted(self) -> dict[str, Any]:
        values = {key: self.raw[key] for key in sorted(self.raw)}
        return {**values, "target_modules": list(self.targets)} if self.targets else values


def parse_config(data: bytes) -> PeftConfig:
    """Check the bytes of an adapter_config.json.

    Raises AdapterConfigInvalid if it is not as PEFT writes it, and AdapterUnsupported, by name, if
    it is more than the plain LoRA that the engine serves.
    """
    raw = _parse_json(data)
    kind = raw.get("peft_type")
    if kind is None and "fine_tune_type" in raw:
        raise _invalid("is MLX's; convert the adapter to PEFT's layout")
    if kind is None:
        raise _invalid('has no "peft_type"; is it a PEFT adapter\'s config? Expected "LORA"')
    if kind != "LORA":
        raise AdapterUnsupported(
            f'{CONFIG_FILE}: peft_type {quoted(str(kind))} is not served; only "LORA" is. '
            "Merge it into the base, or convert it to LoRA with PEFT"
        )
    for name in _FLAGS:
        if not isinstance(raw.get(name, False), bool):
            raise _invalid(f"{name} is {shown(raw[name])}; expected true or false")
    config = PeftConfig(
        rank=_rank(raw.get("r"), '"r"'),
        alpha=_number(raw.get("lora_alpha"), '"lora_alpha"'),
        targets=_targets(raw.get("target_modules")),
        rank_pattern={
            key: _rank(rank, f"rank_pattern {quoted(key)}")
            for key, rank in _pattern(raw, "rank_pattern").items()
        },
        raw=raw,
        warnings=unknown_keys(raw),
    )
    for key, alpha in _pattern(raw, "alpha_pattern").items():
        _number(alpha, f"alpha_pattern {quoted(key)}")
    refuse_variants(raw)
    return config


def check_rank(config: PeftConfig, max_rank: int | None) -> None:
    """Raise RankRefused if the engine (`max_rank`) or vLLM itself does not accept this rank."""
    rank = config.max_rank
    if rank > RANK_LADDER[-1]:
        raise RankRefused(
            f"rank {rank} is above {RANK_LADDER[-1]}, the largest that vLLM serves; "
            "train with a smaller r"
        )
    if max_rank is not None and rank > max_rank:
        raise RankRefused(
            f"rank {rank} is above the engine's max_lora_rank {max_rank}; set engine option "
            f"max_lora_rank to {rung(rank)} or more, or train with a smaller r"
        )


def rung(rank: int) -> int:
    """The smallest `max_lora_rank` of vLLM under which an adapter of this rank is served."""
    return next(step for step in RANK_LADDER if step >= rank)


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        # vLLM reads the file as UTF-8; json.loads would take UTF-16 from bytes as well.
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=unique_keys,
        )
    except RecursionError as error:
        raise _invalid("is nested too deeply") from error
    except ValueError as error:
        raise _invalid(f"is not valid JSON ({str(error)[:200]}); save the adapter again") from error
    if not isinstance(value, dict):
        raise _invalid(f"is a JSON {type(value).__name__}; expected an object")
    return {name: item for name, item in value.items() if item is not None}


def _targets(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value:
        return ()
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return tuple(sorted(set(value)))
    raise _invalid(
        f'"target_modules" is {shown(value)}; expected a list of module names or a pattern'
    )


def _pattern(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    patterns = raw.get(name, {})
    if not isinstance(patterns, dict):
        raise _invalid(f'"{name}" is {shown(patterns)}; expected an object of patterns')
    return patterns


def _rank(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _invalid(f"{where} is {shown(value)}; expected a whole number above 0")
    return value


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _invalid(f"{where} is {shown(value)}; expected a number")
    if abs(value) > _LARGEST_ALPHA:
        raise _invalid(f"{where} is {shown(value)}; expected at most {_LARGEST_ALPHA} either way")
    return float(value)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _invalid(sentence: str) -> AdapterConfigInvalid:
    return AdapterConfigInvalid(f"{CONFIG_FILE} {sentence}")
