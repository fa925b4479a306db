"""`stacked bench start`: seconds from a server's command to its first token, ours and vLLM's.

Cold: a copy of the base, evicted from the page cache, and nothing registered; warm: the same again.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from stacked.bench.children import child, free_port, last_words
from stacked.bench.figures import Spread, ratios, turn
from stacked.bench.memory import forget_file
from stacked.bench.online import OURS, PEER, SIDES, tree_of
from stacked.bench.report import Bar, Chart, Result, Telling
from stacked.bench.server import ours, peer_environment, theirs
from stacked.bench.subject import Subject
from stacked.errors import EngineStartFailed, ParameterInvalid

COLD, WARM = "cold", "warm"

_MOST_SECONDS = 1800.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Settings:
    """Every group size is started cold and then warm, on each side, `rounds` times."""

    groups: Sequence[int]
    rounds: int
    peer: bool = True

    @property
    def sides(self) -> tuple[str, ...]:
        return (OURS, PEER) if self.peer else (OURS,)


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
        for side in turn(number, settings.sides)
    ]
    measured = []
    for done, (number, group, side) in enumerate(order):
        part = replace(own, adapters=own.adapters[:group])
        place = directory / f"{side}-{group}-{number}"
        for state in (COLD, WARM):
            tell.begin(f"Round {number + 1}: {SIDES[side]}, a group of {group}, {state}")
            tell.fraction(done / len(order))
            if state == COLD:
                forget(part)
            healthy, first = time_start(part, side, place / state, place / "data")
            measured.append(Measured(number, side, group, state, healthy, first))
        shutil.rmtree(place)
    return start_result(own.summary() | {"options": own.options()}, settings, measured)


def forget(subject: Subject) -> bool:
    """Evict the base's and the adapters' files from the page cache, as far as permitted.

    Libraries stay in it: dropping the whole cache needs rights that a benchmark should not have.
    """
    places = [subject.base, *subject.adapters]
    requested = [
        forget_file(file) for place in places for file in place.iterdir() if file.is_file()
    ]
    return all(requested)


def time_start(subject: Subject, side: str, directory: Path, data: Path) -> tuple[float, float]:
    """Start one server, request a token of its first adapter, and stop it.

    Raises EngineStartFailed with what it printed.
    """
    directory.mkdir(parents=True)
    terminal, port = directory / "terminal.txt", free_port()
    if side == PEER:
        command = theirs(subject.base, subject.options(), subject.members)
        environment = peer_environment()
    else:
        command, environment = ours(tree_of(subject), directory, data), {}
    command += ["--port", str(port)]
    with terminal.open("wb") as output:
        began = time.monotonic()
        with child(command, stdout=output, stderr=output, environment=environment) as process:
            model = next(iter(subject.members), "base")
            try:
                return _until_token(f"http://127.0.0.1:{port}", model, process, began)
            except EngineStartFailed as error:
                raise EngineStartFailed(f"{error}:\n{last_words(terminal)}") from error


def _until_token(
    url: str, model: str, process: subprocess.Popen[bytes], began: float
) -> tuple[float, float]:
    body = {"model": model, "prompt": "One", "max_tokens": 2, "stream": True, "ignore_eos": True}
    with httpx.Client(base_url=url, timeout=300) as client:
        while process.poll() is None and time.monotonic() - began < _MOST_SECONDS:
            try:
                if client.get("/health").status_code != 200:
                    raise httpx.ConnectError("not yet")
                healthy = time.monotonic() - began
                with client.stream("POST", "/v1/completions", json=body) as response:
                    for line in response.iter_lines():
                        if response.is_success and line.startswith("data: {"):
                            return healthy, time.monotonic() - began
                raise EngineStartFailed(f"the first request got HTTP {response.status_code}")
            except httpx.TransportError:
                time.sleep(_LOOK_SECONDS)
    raise EngineStartFailed("the server ended, or was not ready in time")


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
    rows, listed, bars = [], [], []
    least = min(settings.groups)
    for state in (COLD, WARM):
        for group in settings.groups:
            for side in settings.sides:
                mine = _seconds(measured, side, group, state)
                spreads = {
                    "first_token_seconds": Spread.of(mine),
                    "to_smallest_group": Spread.of(
                        ratios(mine, _seconds(measured, side, least, state))
                    ),
                }
                if side == OURS and settings.peer:
                    theirs_too = _seconds(measured, PEER, group, state)
                    spreads["to_vllm"] = Spread.of(ratios(mine, theirs_too))
                rows.append([state, str(group), SIDES[side], *_cells(spreads)])
                figures = {name: spread.tree() for name, spread in spreads.items()}
                listed.append({"state": state, "group": group, "side": side, **figures})
                label = f"{group} adapters, {state}"
                bars.append(Bar(label, SIDES[side], spreads["first_token_seconds"]))
    data = {
        "benchmark": "start",
        "subject": dict(summary),
        "settings": asdict(settings),
        "rows": listed,
        "each": [asdict(each) for each in measured],
    }
    chart = Chart("From command to first token", "s", bars)
    return Result("start", data, _HEADER, rows, [chart], [_NOTE])


_HEADER = ("state", "adapters", "server", "first token s", "to the smallest group", "to vLLM's")
_NOTE = (
    "Medians, least and most in parentheses; ratios within each round. Cold: files of the base and "
    "of the adapters evicted from the page cache, and nothing registered before; libraries stay "
    "in the page cache, as dropping it needs root. Warm: the same command again, on the same "
    "data directory."
)


def _seconds(measured: Sequence[Measured], side: str, group: int, state: str) -> list[float]:
    return [
        each.first_token
        for each in sorted(measured, key=lambda each: each.round)
        if (each.side, each.group, each.state) == (side, group, state)
    ]


def _cells(spreads: Mapping[str, Spread]) -> list[str]:
    return [
        spreads["first_token_seconds"].text(1),
        spreads["to_smallest_group"].text(2),
        spreads["to_vllm"].text(2) if "to_vllm" in spreads else "",
    ]
