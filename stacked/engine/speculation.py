"""What speculative decoding needs of an engine's plan: how it is configured, how it limits a step.

vLLM decides which methods a build has; here it is only decided which of them work with adapters. A
drafter runs without adapters; the base verifies its proposals with the request's own adapter.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.errors import EngineOptionInvalid

# vLLM's own flags for the same, each with its name in `speculative_config`.
_FLAGS = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
}

# Other drafters compute with the base's own embedding and output layers. On a CPU these add what
# adapters compute for the rows of the base's step, and a drafter has other rows.
_ON_CPU = ("ngram", "suffix", "draft_model")


@dataclass(frozen=True, slots=True)
class Speculation:
    """What drafts, how many tokens per sequence and step, and where a draft model is."""

    method: str
    tokens: int
    model: Path | None

    @property
    def rows(self) -> int:
        """How many tokens one sequence may have in a step: the drafted ones and one more."""
        return self.tokens + 1

    def __str__(self) -> str:
        method = self.method or "by its config's method"
        return f"{method}, {self.tokens} tokens ahead; drafts come without adapters"


def read_speculation(given: Mapping[str, Any]) -> Speculation | None:
    """What vLLM's options say about it, or None. Raises EngineOptionInvalid.

    If only the draft model's own config has the number of tokens, `tokens` is 0.
    """
    asked = given.get("speculative_config")
    if isinstance(asked, str):
        with contextlib.suppress(ValueError):
            asked = json.loads(asked)
    if not isinstance(asked, Mapping | None):
        raise EngineOptionInvalid(f"engine.speculative_config: {asked!r} is not a mapping")
    config = {str(name).replace("-", "_"): value for name, value in (asked or {}).items()}
    config |= {name: given[flag] for flag, name in _FLAGS.items() if flag in given}
    if not config:
        return None
    tokens = config.get("num_speculative_tokens", 0)
    if not isinstance(tokens, int) or tokens < 0:
        raise EngineOptionInvalid(
            f"engine.speculative_config: num_speculative_tokens is {tokens!r}, not a whole number"
        )
    model = Path(str(config.get("model") or "")).expanduser()
    local = (model / "config.json").is_file()
    method = str(config.get("method") or "")
    return Speculation(method, tokens, model if local else None)


def check_on_cpu(speculation: Speculation) -> None:
    """Refuse methods that cannot draft for adapters on a CPU. Raises EngineOptionInvalid."""
    if speculation.method not in _ON_CPU:
        given = repr(speculation.method) if speculation.method else "not named"
        raise EngineOptionInvalid(
            f"engine.speculative_config: the method is {given}; with adapters on a CPU it must "
            f"be one of {', '.join(_ON_CPU)}, since other drafters share layers with the base"
        )
