"""`stacked bench online`: our server against a baseline, under the same load, interleaved.

The baseline is vLLM's own server, or ours with another engine setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stacked.bench.children import Talk
from stacked.bench.figures import in_order, ratios
from stacked.bench.load import FIGURES, Lengths, Load, generator, run_load, words
from stacked.bench.report import Column, Line, Result, Table, Telling
from stacked.bench.rounds import Rounds
from stacked.bench.server import OURS, SIDES, serve, sides_of
from stacked.bench.subject import Subject
from stacked.errors import ParameterInvalid

OTHER = "other"


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
    def sides(self) -> dict[str, str]:
        """Ours, and the baseline if there is one, with their names."""
        if self.against:
            options = ", ".join(f"{name}={value}" for name, value in self.against.items())
            return {OURS: SIDES[OURS], OTHER: f"Stacked, {options}"}
        return sides_of(self.peer)


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
        measured = Rounds(settings.starts, settings.rounds, settings.together).run(
            settings.sides,
            settings.loads,
            lambda side, nth: _server(subject, settings, side, directory / f"{side}-{nth}"),
            lambda url, side, load, number: _one(subject, settings, talk, url, side, load, number),
            tell,
        )
        return online_result(
            subject.summary() | {"options": subject.options()}, settings, list(measured)
        )


def _server(
    subject: Subject, settings: Settings, side: str, directory: Path
) -> AbstractContextManager[str]:
    """A server of this side; each of ours reuses its store at the next start."""
    if side == OTHER:
        subject = replace(subject, engine={**subject.engine, **settings.against})
    return serve(side, subject, directory, directory.parent / f"data-{side}")


def _one(
    subject: Subject, settings: Settings, talk: Talk, url: str, side: str, load: Load, number: int
) -> Measured:
    # New prompts each round: a prefix cache would have those of the round before.
    keys, seed = list(subject.members), number + 1
    said = words(url, subject.base, keys, load, settings.lengths, seed)
    try:
        return Measured(number, side, load.name, run_load(talk, said, load))
    except ParameterInvalid as error:
        raise ParameterInvalid(f"{settings.sides[side]}: {error}") from error


def online_result(
    summary: Mapping[str, Any], settings: Settings, measured: Sequence[Measured]
) -> Result:
    """Medians of each load on each side, and ours over theirs within each round."""
    lines = []
    for load in settings.loads:
        values = {side: _values(measured, side, load) for side in settings.sides}
        for side, figures in values.items():
            shares = {
                f"{name}_ratio": ratios(figures[name], values[other][name])
                for other in settings.sides
                if side == OURS != other
                for name in FIGURES
            }
            lines.append(Line({"load": load.name, "side": side}, load.name, figures | shares))
    table = Table("online", ("load", "server"), _COLUMNS, settings.sides)
    return table.result(summary, settings, measured, lines, [_NOTE])


def _values(measured: Sequence[Measured], side: str, load: Load) -> dict[str, list[float]]:
    mine = in_order(measured, side=side, load=load.name)
    return {name: [each.figures[name] for each in mine] for name in FIGURES}


_COLUMNS = (
    Column("request_throughput", "requests/s", chart="Throughput (requests/s)"),
    Column("output_throughput", "tokens/s", "{:.0f}"),
    Column("median_ttft_ms", "first token ms", "{:.1f}", chart="Time to first token, median (ms)"),
    Column("p99_ttft_ms", "its p99", "{0.median:.1f}"),
    Column("median_itl_ms", "between tokens ms", chart="Time between tokens, median (ms)"),
    Column(
        "p99_itl_ms",
        "its p99",
        "{0.median:.2f}",
        chart="Time between tokens, 99th percentile (ms)",
    ),
    Column("request_throughput_ratio", "requests/s to the other's"),
    Column("median_ttft_ms_ratio", "first token to the other's"),
    Column("p99_itl_ms_ratio", "between tokens p99 to the other's"),
)
_NOTE = (
    "Medians of all rounds, least and most in parentheses. The last three columns are ratios "
    "within each round: above 1 is better for requests/s, below 1 for the others."
)
