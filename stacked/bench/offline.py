"""`stacked bench offline`: the throughput of the engine alone, each row against LoRA switched off.

Engines run as separate processes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stacked.bench.ceilings import BaseWeights, Bound, dtype_of, least_seconds, measured_ceilings
from stacked.bench.children import Talk, talking
from stacked.bench.figures import IDLE_SECONDS, Spread, turn
from stacked.bench.report import Bar, Chart, Result, Telling
from stacked.bench.subject import Subject
from stacked.bench.workload import ASSIGNMENTS, Row, assign
from stacked.errors import StackedError
from stacked.store import BaseModules

OFF, ON, PEER = "off", "on", "vllm"
SIDES = {OFF: "LoRA off", ON: "Stacked", PEER: "vLLM's kernel"}


@dataclass(frozen=True, slots=True)
class Settings:
    """`rounds` times every row; `together`: all engines alive at once, one of them at work."""

    rows: Sequence[Row]
    slots: int
    batch: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    rounds: int
    peer: bool = False
    together: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        return (OFF, ON, PEER) if self.peer else (OFF, ON)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one row on one side."""

    round: int
    side: str
    row: str
    seconds: float
    requests: int
    input_tokens: int
    output_tokens: int
    peak_bytes: int
    gpu_bytes: int

    @property
    def tokens(self) -> float:
        """Per second: what was read and what was written."""
        return (self.input_tokens + self.output_tokens) / self.seconds

    @property
    def written(self) -> float:
        """Tokens per second that were generated."""
        return self.output_tokens / self.seconds


def run_offline(subject: Subject, settings: Settings, directory: Path, tell: Telling) -> Result:
    """Measure every row, and LoRA off next to it. Raises EngineStartFailed."""
    bound = bound_of(subject, settings, tell)
    run = _together if settings.together else _apart
    measured = list(run(subject, settings, directory, tell))
    return offline_result(subject.summary(), settings, measured, bound)


def bound_of(subject: Subject, settings: Settings, tell: Telling) -> Bound | None:
    """What this machine allows for one run of the base; None, with a note, if unknown."""
    tell.begin("Measuring how fast this machine copies and multiplies")
    try:
        base = BaseWeights.of(BaseModules.read(subject.base))
        if base is None:
            tell.note("no ceiling: the shapes of this base's weights are unknown")
            return None
        ceilings = measured_ceilings(dtype_of(subject.base, subject.options().get("dtype")))
    except StackedError as error:
        tell.note(f"no ceiling: {error}")
        return None
    least = least_seconds(
        base,
        ceilings,
        requests=settings.requests,
        batch=settings.batch,
        prompt=settings.prompt_tokens,
        output=settings.output_tokens,
    )
    return Bound(ceilings, least)


def _together(
    subject: Subject, settings: Settings, directory: Path, tell: Telling
) -> Iterator[Measured]:
    """All engines live; each row of a round is measured on one after the other."""
    with ExitStack() as stack:
        engines: dict[str, Talk] = {}
        for side in settings.sides:
            tell.begin(f"Starting an engine: {SIDES[side]}")
            engines[side] = stack.enter_context(_engine(subject, settings, side, directory))
        tell.begin(f"{settings.rounds} rounds of {len(settings.rows)} rows")
        for side in settings.sides:  # the first batch of an engine is slower than the others
            _measure(engines[side], settings, side, settings.rows[0], -1)
        for number in range(settings.rounds):
            for at, row in enumerate(settings.rows):
                for side in turn(number + at, settings.sides):
                    time.sleep(IDLE_SECONDS)
                    yield _measure(engines[side], settings, side, row, number)
                done = (number * len(settings.rows) + at + 1) / len(settings.rows)
                tell.fraction(done / settings.rounds)


def _apart(
    subject: Subject, settings: Settings, directory: Path, tell: Telling
) -> Iterator[Measured]:
    """One engine alive at a time; every round starts each anew, first the one, then the other."""
    order = [(n, side) for n in range(settings.rounds) for side in turn(n, settings.sides)]
    for number, side in order:
        tell.begin(f"Round {number + 1} of {settings.rounds}: {SIDES[side]}")
        with _engine(subject, settings, side, directory) as engine:
            _measure(engine, settings, side, settings.rows[0], -1)
            for done, row in enumerate(settings.rows, start=1):
                yield _measure(engine, settings, side, row, number)
                tell.fraction(done / len(settings.rows))


@contextmanager
def _engine(subject: Subject, settings: Settings, side: str, directory: Path) -> Iterator[Talk]:
    log = directory / f"engine-{side}.log"
    command = engine_command(log)
    environment = {"STACKED_CPU_LORA": "0"} if side == PEER else {}
    with talking(command, log, f"the engine ({SIDES[side]})", environment) as engine:
        engine.ask(start_message(subject, settings, side))
        yield engine


def engine_command(log: Path) -> list[str]:
    return [sys.executable, "-m", "stacked.bench.engine_child", str(log)]


def start_message(subject: Subject, settings: Settings, side: str) -> dict[str, Any]:
    options = {"max_loras": settings.slots, "max_num_seqs": settings.batch, **subject.engine}
    return {
        "base": str(subject.base),
        "options": options,
        "adapters": subject.listed(),
        "lora": side != OFF,
    }


def batch_message(settings: Settings, side: str, row: Row, number: int) -> dict[str, Any]:
    """The same requests for every side in a round and row; with LoRA off, for the base only.

    No two rounds or rows share a prompt, which a prefix cache would make faster.
    """
    way = ASSIGNMENTS.index(row.assignment)
    seed = ((number + 1) * 10_000 + row.adapters) * len(ASSIGNMENTS) + way
    assigned = assign(row, settings.requests, seed)
    return {
        "assigned": [None] * len(assigned) if side == OFF else assigned,
        "seed": seed,
        "batch": settings.batch,
        "input": settings.prompt_tokens,
        "output": settings.output_tokens,
    }


def _measure(engine: Talk, settings: Settings, side: str, row: Row, number: int) -> Measured:
    reply = engine.ask(batch_message(settings, side, row, number))
    return Measured(round=number, side=side, row=row.name, **reply)


def row_ratios(measured: Sequence[Measured], side: str, row: str) -> list[float]:
    """Tokens per second of a row over those of LoRA off in the same round, for each round."""
    off = {each.round: each.tokens for each in measured if each.side == OFF and each.row == row}
    return [
        each.tokens / off[each.round]
        for each in measured
        if each.side == side and each.row == row and each.round in off
    ]


def offline_result(
    summary: Mapping[str, Any],
    settings: Settings,
    measured: Sequence[Measured],
    bound: Bound | None = None,
) -> Result:
    """The table, the charts and the figures of what was measured."""
    rows, listed, bars, shares = [], [], [], []
    names = [row.name for row in settings.rows]
    for side, name in [(OFF, ""), *((s, n) for n in names for s in settings.sides if s != OFF)]:
        mine = [each for each in measured if each.side == side and (each.row == name or not name)]
        if not mine:
            continue
        figures = _figures(mine, row_ratios(measured, side, name), bound)
        label = name or "base"
        rows.append([SIDES[side], label, *_cells(figures)])
        listed.append({"side": side, "row": label} | {k: v.tree() for k, v in figures.items()})
        bars.append(Bar(label, SIDES[side], figures["tokens_per_second"]))
        if "ratio" in figures:
            shares.append(Bar(label, SIDES[side], figures["ratio"]))
    data = {
        "benchmark": "offline",
        "subject": dict(summary),
        "settings": asdict(settings),
        **({"bound": asdict(bound)} if bound else {}),
        "rows": listed,
        "each": [asdict(each) for each in measured],
    }
    header = ["engine", "requests of", "tokens/s", "generated/s", "requests/s", "peak memory"]
    header += ["of LoRA off", *(["of the ceiling"] if bound else [])]
    charts = [
        Chart("Throughput", "tokens/s", bars),
        Chart("Of LoRA off, side by side", "ratio", shares, line=1.0),
    ]
    notes = [_NOTE, *([_ceiling_note(bound)] if bound else [])]
    return Result("offline", data, header, rows, charts, notes)


_NOTE = (
    "Medians of all rounds, least and most in parentheses. A ratio is taken within each round, "
    "against LoRA off under the same requests. Tokens count prompts and answers."
)


def _ceiling_note(bound: Bound) -> str:
    known = bound.ceilings
    return (
        f"The ceiling is what a run would take if each step did no more than read the base's "
        f"weights once and multiply its tokens by them, as fast as {known.device} copied "
        f"({known.copied / 1e9:.1f} GB/s) and multiplied ({known.multiplied / 1e12:.3g} TFLOP/s) "
        f"{known.dtype} just before."
    )


def _figures(
    mine: Sequence[Measured], shares: Sequence[float], bound: Bound | None
) -> dict[str, Spread]:
    figures = {
        "tokens_per_second": Spread.of([each.tokens for each in mine]),
        "generated_per_second": Spread.of([each.written for each in mine]),
        "requests_per_second": Spread.of([each.requests / each.seconds for each in mine]),
        "peak_gb": Spread.of([(each.gpu_bytes or each.peak_bytes) / 1e9 for each in mine]),
    }
    if mine[0].side != OFF and shares:
        figures["ratio"] = Spread.of(shares)
    if bound:
        figures["of_ceiling"] = Spread.of([bound.seconds / each.seconds for each in mine])
    return figures


def _cells(figures: Mapping[str, Spread]) -> list[str]:
    return [
        figures["tokens_per_second"].text(1),
        figures["generated_per_second"].text(1),
        figures["requests_per_second"].text(2),
        f"{figures['peak_gb'].most:.2f} GB",
        figures["ratio"].text(2) if "ratio" in figures else "1",
        *([figures["of_ceiling"].text(2)] if "of_ceiling" in figures else []),
    ]
