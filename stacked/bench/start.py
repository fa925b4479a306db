"""`stacked bench start`: seconds from a server's command to its first token, ours and vLLM's.

Cold: a copy of the base, evicted from the page cache, and nothing registered; warm: the same again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx

from stacked.bench.figures import in_order, ratios, turn
from stacked.bench.processes import forget_files
from stacked.bench.report import Column, Line, Result, Table, Telling
from stacked.bench.server import OURS, PEER, SIDES, serve, sides_of
from stacked.bench.subject import Subject
from stacked.errors import EngineStartFailed, ParameterInvalid

COLD, WARM = "cold", "warm"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every group size is started cold and then warm, on each side, `rounds` times."""

    groups: Sequence[int]
    rounds: int
    peer: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds from the command until `/health` was good, and until the first token."""

    round: int
    side: str
    group: int
    state: str
    healthy: float
    first_token: float


def run_start(subject: Subject, settings: Settings, directory: Path, tell: Telling) -> Result:
    """Start every server in turn. Raises EngineStartFailed."""
    directory.mkdir(parents=True, exist_ok=True)
    own = _own_copy(subject, directory)
    order = [
        (number, group, side)
        for number in range(settings.rounds)
        for group in settings.groups
        for side in turn(number, list(sides_of(settings.peer)))
    ]
    measured = []
    for done, (number, group, side) in enumerate(order):
        part = replace(own, adapters=own.adapters[:group])
        place = directory / f"{side}-{group}-{number}"
        for state in (COLD, WARM):
            tell.begin(f"Round {number + 1}: {SIDES[side]}, a group of {group}, {state}")
            tell.fraction(done / len(order))
            if state == COLD:
                forget_files([part.base, *part.adapters])
            healthy, first = time_start(part, side, place / state, place / "data")
            measured.append(Measured(number, side, group, state, healthy, first))
        shutil.rmtree(place)
    return start_result(own.summary() | {"options": own.options()}, settings, measured)


def time_start(subject: Subject, side: str, directory: Path, data: Path) -> tuple[float, float]:
    """Start one server, request a token of its first adapter, and stop it.

    Raises EngineStartFailed with what it printed.
    """
    server = serve(side, subject, directory, data)
    model = next(iter(subject.members), "base")
    body = {"model": model, "prompt": "One", "max_tokens": 2, "stream": True, "ignore_eos": True}
    began = time.monotonic()
    with server as url:
        healthy = time.monotonic() - began
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=300) as response:
                for line in response.iter_lines():
                    if response.is_success and line.startswith("data: {"):
                        return healthy, time.monotonic() - began
                raise EngineStartFailed(f"the first request got HTTP {response.status_code}")
        except httpx.HTTPError as error:
            raise EngineStartFailed(f"the first request was not answered: {error}") from error


def _own_copy(subject: Subject, directory: Path) -> Subject:
    """A copy that no other process has mapped, so that it can be evicted from the page cache."""
    base = directory / "base" / subject.base.name
    shutil.copytree(subject.base, base)
    return replace(subject, base=base)


def groups_of(text: str) -> list[int]:
    """Group sizes from `1,50,500`. Raises ParameterInvalid."""
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ParameterInvalid(f"{text!r}: group sizes are numbers above 0, as in 1,50,500")
    return [int(word) for word in words]


def start_result(
    summary: Mapping[str, Any], settings: Settings, measured: Sequence[Measured]
) -> Result:
    """Medians, our ratio to vLLM's server, and each group's ratio to the smallest of its side."""

    def seconds(**wanted: object) -> list[float]:
        return [each.first_token for each in in_order(measured, **wanted)]

    lines = []
    least = min(settings.groups)
    for state, group, side in product((COLD, WARM), settings.groups, sides_of(settings.peer)):
        mine = seconds(state=state, group=group, side=side)
        peers = seconds(state=state, group=group, side=PEER) if side == OURS else []
        figures = {
            "first_token_seconds": mine,
            "to_smallest_group": ratios(mine, seconds(state=state, group=least, side=side)),
            "to_vllm": ratios(mine, peers) if peers else [],
        }
        keys = {"state": state, "group": group, "side": side}
        lines.append(Line(keys, f"{group} adapters, {state}", figures))
    return _TABLE.result(summary, settings, measured, lines, [_NOTE])


_TABLE = Table(
    "start",
    ("state", "adapters", "server"),
    (
        Column(
            "first_token_seconds",
            "first token s",
            "{:.1f}",
            chart="From command to first token (s)",
        ),
        Column("to_smallest_group", "to the smallest group"),
        Column("to_vllm", "to vLLM's"),
    ),
    SIDES,
)
_NOTE = (
    "Medians, least and most in parentheses; ratios within each round. Cold: files of the base and "
    "of the adapters evicted from the page cache, and nothing registered before; libraries stay "
    "in the page cache, as dropping it needs root. Warm: the same command again, on the same "
    "data directory."
)
