"""Which pattern of an adapter_config.json is for which module, in bounded time.

PEFT's rules (peft/utils/other.py): a key of rank_pattern or alpha_pattern is a regular expression
for the end of a module's name, and the first that matches counts (get_pattern_key); target_modules
is one for the whole name (match_target_against_key).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

from stacked.errors import AdapterConfigInvalid
from stacked.store import expressions
from stacked.store.files import CONFIG_FILE
from stacked.store.limits import MIB
from stacked.store.text import quoted

FEW = 64
"""The number of patterns that the engine may try for each module."""

_SECONDS = 10.0
_BYTES = 512 * MIB
# No repeat and no group: a match takes one step for each character and each alternative.
_PLAIN = re.compile(r"(?:[\w|^]|\\?[.-])+", re.ASCII)


def is_plain(pattern: str) -> bool:
    """Whether a pattern is only made of names, which are always fast to match."""
    return _PLAIN.fullmatch(pattern) is not None


def first_matches(key: str, patterns: Collection[str], names: Collection[str]) -> Mapping[str, str]:
    """For each of these names the first pattern that matches it; names without one are left out.

    `key` is the patterns' key in the config. Raises AdapterConfigInvalid if one is not a valid
    expression, or if they take too long.
    """
    return _matches(key, list(patterns), list(names), whole=False)


def whole_matches(key: str, pattern: str, names: Collection[str]) -> set[str]:
    """Those of the names that a pattern matches from end to end. Raises as `first_matches`."""
    return set(_matches(key, [pattern], list(names), whole=True))


def _matches(key: str, patterns: list[str], names: list[str], *, whole: bool) -> dict[str, str]:
    if not patterns or not names:
        return {}
    try:
        if all(is_plain(pattern) for pattern in patterns):
            return expressions.first_of(patterns, names, _SECONDS, whole=whole)
        return _in_a_process(patterns, names, whole=whole)
    except expressions.Invalid as error:
        raise AdapterConfigInvalid(
            f"{CONFIG_FILE} {key} {quoted(error.pattern)} is not a pattern ({error}); "
            "write a module's name, or a regular expression of Python's"
        ) from error
    except TimeoutError as error:
        raise AdapterConfigInvalid(
            f"{CONFIG_FILE} {key}: {len(patterns)} patterns take more than {_SECONDS:g} s or "
            f"{_BYTES // MIB} MiB to match {len(names)} module names; write the modules' names "
            "instead of expressions"
        ) from error


def _in_a_process(patterns: list[str], names: list[str], *, whole: bool) -> dict[str, str]:
    request = {
        "patterns": patterns,
        "names": names,
        "whole": whole,
        "seconds": _SECONDS,
        "bytes": _BYTES,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", expressions.__file__],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise TimeoutError from error
    answer: dict[str, Any] = json.loads(done.stdout)
    if "invalid" in answer:
        raise expressions.Invalid(answer["invalid"], answer["reason"])
    return {name: patterns[at] for name, at in answer["found"].items()}
