"""Durations are measured on a clock that does not jump; the time of day is for dates alone."""

from __future__ import annotations

import ast
from pathlib import Path

import stacked

PACKAGE = Path(stacked.__file__).parent

# Who may read the time of day, and for what.
DATES = {
    "api/control/base.py": "a name with the date in it",
    "api/control/status.py": "since when usage is shown",
    "api/gate.py": "whether a signature's or a token's date is now",
    "api/keyring.py": "whether a token has expired",
    "api/process.py": "the name of a log",
    "api/rates.py": "the minutes by which the library counts, by the time of day",
    "api/retry_tokens.py": "tokens outlive the process",
    "bench/": "when a run was made",
    "chat/child.py": "what templates may show",
    "cli/": "dates that are typed and shown",
    "keys/": "when a key was made and ends",
    "registry/records.py": "when a record was made",
    "retention/collect.py": "ages of files and records",
    "usage.py": "the hour that is counted",
}


def reads_the_time_of_day(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wall = {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("time", "strftime")}
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in wall
        for node in ast.walk(tree)
    )


def test_only_dates_are_read_from_a_clock_that_jumps() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if reads_the_time_of_day(path)
    }
    unknown = {each for each in readers if not each.startswith((*DATES,))}
    assert not unknown, f"use time.monotonic() for durations: {sorted(unknown)}"
    unused = [place for place in DATES if not any(each.startswith(place) for each in readers)]
    assert not unused
