"""`stacked bench online`: our server against a baseline, under the same load, interleaved.

The baseline is vLLM's own server, or ours with another engine setting.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stacked.bench.children import Talk
from stacked.bench.figures import IDLE_SECONDS, Spread, ratios, turn
from stacked.bench.load import FIGURES, Lengths, Load, generator, run_load, words
from stacked.bench.report import Bar, Chart, Result, Telling
from stacked.bench.server import peer_serving, serving
from stacked.bench.subject import Subject
from stacked.errors import ParameterInvalid

OURS, PEER, OTHER = "stacked", "vllm", "other"
SIDES = {OURS: "Stacked", PEER: "vLLM's server"}


@dataclass(frozen=True, slots=True)
class Settings:
    """`starts` times each server is started, and `rounds` times loaded in one start.

    `together`: both alive at once, one of them under load. `against`: engine options of a second
    server of ours, in vLLM's place.
    """

    loads: Sequence[Load]
    lengths: Lengths
    starts: int
    rounds: int
    peer: bool = True
    together: bool = False
    against: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> str | None:
        return OTHER if self.against else PEER if self.peer else None

    @property
    def sides(self) -> tuple[str, ...]:
        return (OURS, self.baseline) if self.baseline else (OURS,)

    def name(self, side: str) -> str:
        """What a table calls a side."""
        options = ", ".join(f"{name}={value}" for name, value in self.against.items())
        return SIDES.get(side, f"Stacked, {options}")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one load on one side; milliseconds and per second, as vLLM's benchmark says."""

    round: int
    side: str
    load: str
    figures: Mapping[str, float]


def run_online(subject: Subject, settings: Settings, directory: Path, tell: Telling) -> Result:
    """Load the servers in turn. Raises EngineStartFailed, ParameterInvalid."""
    if settings.peer and settings.against:
        raise ParameterInvalid("one baseline at a time: vLLM's server, or other engine options")
    tell.begin("Starting the load generator")
    with generator(directory) as talk:
        run = _together if settings.together else _apart
        measured = list(run(subject, settings, directory, talk, tell))
    return online_result(subject.summary() | {"options": subject.options()}, settings, measured)


def _apart(
    subject: Subject, settings: Settings, directory: Path, talk: Talk, tell: Telling
) -> Iterator[Measured]:
    """One server alive at a time."""
    for start in range(settings.starts):
        for side in turn(start, settings.sides):
            tell.begin(f"Start {start + 1} of {settings.starts}: {settings.name(side)}")
            with _server(subject, settings, side, directory / f"{side}-{start}") as url:
                tell.begin(f"Loading {settings.name(side)}")
                _one(subject, settings, talk, url, side, settings.loads[0], -1)
                for at in range(settings.rounds):
                    for load in settings.loads:
                        number = start * settings.rounds + at
                        yield _one(subject, settings, talk, url, side, load, number)
                    tell.fraction((at + 1) / settings.rounds)


def _together(
    subject: Subject, settings: Settings, directory: Path, talk: Talk, tell: Telling
) -> Iterator[Measured]:
    """Both alive, loaded in turn, so that a pair is seconds apart."""
    for start in range(settings.starts):
        with ExitStack() as stack:
            urls = {}
            for side in turn(start, settings.sides):
                tell.begin(f"Start {start + 1} of {settings.starts}: {settings.name(side)}")
                place = directory / f"{side}-{start}"
                urls[side] = stack.enter_context(_server(subject, settings, side, place))
            tell.begin(f"Loading {' and '.join(map(settings.name, urls))} in turn")
            for side, url in urls.items():  # the first load of a server is slower than the others
                _one(subject, settings, talk, url, side, settings.loads[0], -1)
            for at in range(settings.rounds):
                number = start * settings.rounds + at
                for nth, load in enumerate(settings.loads):
                    for side in turn(number + nth, settings.sides):
                        time.sleep(IDLE_SECONDS)
                        yield _one(subject, settings, talk, urls[side], side, load, number)
                tell.fraction((at + 1) / settings.rounds)


@contextmanager
def _server(subject: Subject, settings: Settings, side: str, directory: Path) -> Iterator[str]:
    """Either server with the same settings; each of ours reuses its store at the next start."""
    if side == OTHER:
        subject = replace(subject, engine={**subject.engine, **settings.against})
    if side == PEER:
        with peer_serving(subject.base, subject.options(), subject.members, directory) as url:
            yield url
    else:
        with serving(tree_of(subject), directory, directory.parent / f"data-{side}") as url:
            yield url


def tree_of(subject: Subject) -> dict[str, Any]:
    """The config that serves the subject."""
    listed = [{"key": key, "source": str(path)} for key, path in subject.members.items()]
    return {
        "base": {"model": str(subject.base), "key": "base"},
        "group": {"name": "bench", "members": listed},
        "engine": subject.options(),
    }


def _one(
    subject: Subject,
    settings: Settings,
    talk: Talk,
    url: str,
    side: str,
    load: Load,
    number: int,
) -> Measured:
    # New prompts each round: a prefix cache would have those of the round before.
    keys, seed = list(subject.members), number + 1
    said = words(url, subject.base, keys, load, settings.lengths, seed)
    try:
        return Measured(number, side, load.name, run_load(talk, said, load))
    except ParameterInvalid as error:
        raise ParameterInvalid(f"{settings.name(side)}: {error}") from error


def online_result(
    summary: Mapping[str, Any], settings: Settings, measured: Sequence[Measured]
) -> Result:
    """Medians of each load on each side, and ours over theirs within each round."""
    rows, listed, charts = [], [], []
    for load in settings.loads:
        for side in settings.sides:
            spreads = {name: Spread.of(_values(measured, side, load, name)) for name in FIGURES}
            shares = _shares(measured, load, settings.baseline) if side == OURS else {}
            rows.append([load.name, settings.name(side), *_cells(spreads), *_share_cells(shares)])
            ratios = {f"{name}_ratio": spread.tree() for name, spread in shares.items()}
            figures = {name: spread.tree() for name, spread in spreads.items()}
            listed.append({"load": load.name, "side": side, **figures, **ratios})
    for name, title, unit in _CHARTS:
        bars = [
            Bar(load.name, settings.name(side), Spread.of(_values(measured, side, load, name)))
            for load in settings.loads
            for side in settings.sides
        ]
        charts.append(Chart(title, unit, bars))
    data = {
        "benchmark": "online",
        "subject": dict(summary),
        "settings": asdict(settings),
        "rows": listed,
        "each": [asdict(each) for each in measured],
    }
    return Result("online", data, _HEADER, rows, charts, [_NOTE])


_CHARTS = (
    ("request_throughput", "Throughput", "requests/s"),
    ("median_ttft_ms", "Time to first token, median", "ms"),
    ("median_itl_ms", "Time between tokens, median", "ms"),
    ("p99_itl_ms", "Time between tokens, 99th percentile", "ms"),
)
_SHARED = ("request_throughput", "median_ttft_ms", "p99_itl_ms")
_HEADER = (
    "load",
    "server",
    "requests/s",
    "tokens/s",
    "first token ms",
    "its p99",
    "between tokens ms",
    "its p99",
    "requests/s to the other's",
    "first token to the other's",
    "between tokens p99 to the other's",
)
_NOTE = (
    "Medians of all rounds, least and most in parentheses. The last three columns are ratios "
    "within each round: above 1 is better for requests/s, below 1 for the others."
)


def _values(measured: Sequence[Measured], side: str, load: Load, name: str) -> list[float]:
    mine = [each for each in measured if each.side == side and each.load == load.name]
    return [each.figures[name] for each in sorted(mine, key=lambda each: each.round)]


def _shares(measured: Sequence[Measured], load: Load, baseline: str | None) -> dict[str, Spread]:
    if baseline is None:
        return {}
    return {
        name: Spread.of(
            ratios(_values(measured, OURS, load, name), _values(measured, baseline, load, name))
        )
        for name in FIGURES
    }


def _cells(spreads: Mapping[str, Spread]) -> list[str]:
    return [
        spreads["request_throughput"].text(2),
        spreads["output_throughput"].text(0),
        spreads["median_ttft_ms"].text(1),
        f"{spreads['p99_ttft_ms'].median:.1f}",
        spreads["median_itl_ms"].text(2),
        f"{spreads['p99_itl_ms'].median:.2f}",
    ]


def _share_cells(shares: Mapping[str, Spread]) -> list[str]:
    if not shares:
        return [""] * len(_SHARED)
    return [shares[name].text(2) for name in _SHARED]
