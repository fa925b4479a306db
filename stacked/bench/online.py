"""`stacked bench online`: our server against a baseline, under the same load, interleaved.

The baseline is vLLM's own server, ours with another engine setting, or keys of the same server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from stacked.bench.children import Talk
from stacked.bench.figures import in_order, ratios
from stacked.bench.load import FIGURES, Lengths, Load, generator, run_load, words
from stacked.bench.report import Column, Line, Result, Table, Telling
from stacked.bench.rounds import Rounds
from stacked.bench.server import OURS, SIDES, serve, serving, sides_of
from stacked.bench.subject import Subject
from stacked.errors import ParameterInvalid
from stacked.serving.names import UNIT_HEADER

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Settings:
    """`starts` times each server is started, and `rounds` times loaded in one start.

    `together`: both alive at once, one of them under load. `against`: engine options of a second
    server of ours, in vLLM's place. `experiment`: keys of experiments, against those of their arms.
    """

    loads: Sequence[Load]
    lengths: Lengths
    starts: int
    rounds: int
    peer: bool = True
    together: bool = False
    against: Mapping[str, Any] = field(default_factory=dict)
    experiment: bool = False

    @property
    def sides(self) -> dict[str, str]:
        """Ours, and the baseline if there is one, with their names."""
        if self.experiment:
            return {OURS: "keys of experiments", OTHER: "keys of their arms"}
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
    if bool(settings.peer) + bool(settings.against) + settings.experiment > 1:
        raise ParameterInvalid(
            "one baseline at a time: vLLM's server, other engine options, or an experiment's arms"
        )
    tell.begin("Starting the load generator")
    with generator(directory) as talk, ExitStack() as stack:
        start = partial(_server, subject, settings, directory)
        if settings.experiment:  # one server has both sides' keys
            url = stack.enter_context(_with_experiments(subject, directory / "stacked"))
            start = partial(_the_same, url)
        together = settings.together or settings.experiment
        measured = Rounds(settings.starts, settings.rounds, together).run(
            settings.sides,
            settings.loads,
            start,
            lambda url, side, load, number: _one(subject, settings, talk, url, side, load, number),
            tell,
        )
        return online_result(
            subject.summary() | {"options": subject.options()}, settings, list(measured)
        )


def _server(
    subject: Subject, settings: Settings, directory: Path, side: str, nth: int
) -> AbstractContextManager[str]:
    """A server of this side; each of ours reuses its store at the next start."""
    if side == OTHER:
        subject = replace(subject, engine={**subject.engine, **settings.against})
    return serve(side, subject, directory / f"{side}-{nth}", directory / f"data-{side}")


def _the_same(url: str, side: str, nth: int) -> AbstractContextManager[str]:
    return nullcontext(url)


def _with_experiments(subject: Subject, directory: Path) -> AbstractContextManager[str]:
    """A server with an experiment for each key, whose other arm in effect never wins."""
    tree = subject.tree(subject.options())
    tree["group"]["experiments"] = [
        {"key": _tried(key), "arms": [{"key": key, "weight": 1e6}, {"key": "base", "weight": 1e-6}]}
        for key in subject.members
    ]
    return serving(tree, directory, directory / "data")


def _tried(key: str) -> str:
    return f"tried-{key}"


def _one(
    subject: Subject, settings: Settings, talk: Talk, url: str, side: str, load: Load, number: int
) -> Measured:
    # New prompts each round: a prefix cache would have those of the round before.
    keys, seed = list(subject.members), number + 1
    if settings.experiment and side == OURS:
        keys = list(map(_tried, keys))
    said = words(url, subject.base, keys, load, settings.lengths, seed)
    if settings.experiment:
        said += ["--header", f"{UNIT_HEADER}=2f1c9d3e-8a4b-4c1d-9e6f-0a1b2c3d4e5f"]
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
