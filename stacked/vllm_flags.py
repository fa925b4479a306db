"""vLLM's command line, as the text of `PARAMS`, to the option names of a config's `engine:`."""

from __future__ import annotations

import re
import shlex
from typing import Any

from stacked.errors import ConfigInvalid

# The short options of `vllm serve` that make sense for one engine.
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
    "-sc": "--speculative-config",
    "-q": "--quantization",
    "-O": "--optimization-level",
}
_LEVEL = re.compile(r"^-O(\d)$")
_INTEGER = re.compile(r"-?\d+")
_NUMBER = re.compile(r"-?(\d+\.\d*|\.?\d+)([eE][+-]?\d+)?")


def read_flags(text: str, *, where: str) -> dict[str, Any]:
    """`--max-model-len 4096 --enable_lora` as `{"max_model_len": 4096, "enable_lora": True}`.

    Underscores and hyphens are equal, `--name=value` is `--name value`, a flag without a value is
    True and `--no-name` False, several values are a list, a dotted name is a nested mapping, and
    the last of equal flags counts: all as in vLLM's own parser. Raises ConfigInvalid, naming
    `where`.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigInvalid(f"{where}: not a command line ({error}): {text!r}") from error
    found: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in words:
        word = _LEVEL.sub(r"-O=\1", word)
        if _is_flag(word):
            flag, equals, value = word.partition("=")
            name = _SHORT.get(flag, flag).removeprefix("--")
            first, dot, rest = name.partition(".")
            values = found[first.replace("-", "_") + dot + rest] = [value] if equals else []
        elif values is None:
            raise ConfigInvalid(f"{where}: expected a flag such as --max-model-len, got {word!r}")
        else:
            values.append(word)
    options: dict[str, Any] = {}
    for name, said in found.items():
        _place(options, name, said, where)
    return options


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not _NUMBER.fullmatch(word) and word != "-"


def _place(options: dict[str, Any], name: str, said: list[str], where: str) -> None:
    value: Any = [_scalar(word) for word in said] if len(said) > 1 else True
    if len(said) == 1:
        value = _scalar(said[0])
    elif not said and name.startswith("no_"):
        name, value = name.removeprefix("no_"), False
    *parents, last = name.split(".")
    inner = options
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigInvalid(f"{where}: --{parent} is given both as a whole and as --{name}")
    inner[last] = value


def _scalar(word: str) -> Any:
    """Numbers as numbers; everything else stays text, since only vLLM knows an option's type."""
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _NUMBER.fullmatch(word) else word
