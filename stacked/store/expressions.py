"""Python's own matching of many expressions against many names, by PEFT's rule.

As a program it does so in a process that can be killed, because `re` cannot be interrupted: it
reads {"patterns", "names", "whole", "seconds", "bytes"} as JSON and writes {"found"}, numbers of
patterns by name, or {"invalid", "reason"}. It must import nothing beyond the standard library, so
that it starts in milliseconds.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Iterable, Sequence


class Invalid(ValueError):
    """An expression that `re` does not compile: `pattern` and the reason."""

    def __init__(self, pattern: str, reason: object) -> None:
        super().__init__(str(reason))
        self.pattern = pattern


def first_of(
    patterns: Sequence[str], names: Iterable[str], seconds: float, *, whole: bool = False
) -> dict[str, str]:
    """For each name the first pattern that matches its end after a dot, or all of it if `whole`.

    Names without a match are left out. Raises Invalid, and TimeoutError between two names.
    """
    until = time.monotonic() + seconds
    compiled = []
    for pattern in patterns:
        expression = _compiled(pattern if whole else rf"(.*\.)?({pattern})$", pattern)
        compiled.append((expression.fullmatch if whole else expression.match, pattern))
        _stop_after(until)
    found = {}
    for name in names:
        for matches, pattern in compiled:
            if matches(name):
                found[name] = pattern
                break
        _stop_after(until)
    return found


def _stop_after(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError


def _compiled(expression: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise Invalid(pattern, error) from error


def _main() -> None:
    request = json.load(sys.stdin)
    limits = {
        resource.RLIMIT_CPU: int(request["seconds"]) + 1,
        resource.RLIMIT_AS: int(request["bytes"]),
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lowest, lowest))
    patterns = request["patterns"]
    try:
        found = first_of(patterns, request["names"], request["seconds"], whole=request["whole"])
        number = {pattern: at for at, pattern in enumerate(patterns)}
        answer: dict[str, object] = {"found": {name: number[found[name]] for name in found}}
    except Invalid as error:
        answer = {"invalid": error.pattern, "reason": str(error)[:200]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
