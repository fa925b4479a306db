"""`stacked bench offline`: the throughput of the engine alone, each row against LoRA switched off.

Engines run as separate processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stacked.bench.ceilings import BaseWeights, Bound, dtype_of, least_seconds, measured_ceilings
from stacked.bench.children import Talk, talking
from stacked.bench.figures import in_order, ratios
from stacked.bench.report import Column, Line, Result, Table, Telling
from stacked.bench.rounds import Rounds
from stacked.bench.subject import Subject
from stacked.bench.workload import ASSIGNMENTS, Row, assign
from stacked.errors import StackedError
from stacked.store import BaseModules

OFF, ON, PEER = "off", "on", "vllm"
SIDES = {OFF: "LoRA off", ON: "Stacked", PEER: "vLLM's kernel"}

ENGINE_CHILD = (sys.executable, "-m", "stacked.bench.engine_child")


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
    def sides(self) -> dict[str, str]:
        return {side: name for side, name in SIDES.items() if self.peer or side != PEER}


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


def run_offline(subject: Subject, settings: Settings, directory: Path, tell: Telling) -> Result:
    """Measure every row, and LoRA off next to it. Raises EngineStartFailed."""
    bound = bound_of(subject, settings, tell)
    starts, rounds = (1, settings.rounds) if settings.together else (settings.rounds, 1)
    measured = Rounds(starts, rounds, settings.together).run(
        settings.sides,
        settings.rows,
        lambda side, _: _engine(subject, settings, side, directory),
        lambda engine, side, row, number: _measure(engine, settings, side, row, number),
        tell,
    )
    return offline_result(subject.summary(), settings, list(measured), bound)


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


@contextmanager
def _engine(subject: Subject, settings: Settings, side: str, directory: Path) -> Iterator[Talk]:
    log = directory / f"engine-{side}.log"
    environment = {"STACKED_CPU_LORA": "0"} if side == PEER else {}
    start = {
        "base": str(subject.base),
        "options": {"max_loras": settings.slots, "max_num_seqs": settings.batch, **subject.engine},
        "adapters": [str(path) for path in subject.adapters],
        "lora": side != OFF,
    }
    with talking(ENGINE_CHILD, log, f"the engine ({SIDES[side]})", environment) as engine:
        engine.ask(start)
        yield engine


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


def offline_result(
    summary: Mapping[str, Any],
    settings: Settings,
    measured: Sequence[Measured],
    bound: Bound | None = None,
) -> Result:
    """The table, the charts and the figures of what was measured."""
    groups = [in_order(measured, side=OFF)]
    groups += [
        in_order(measured, side=side, row=row.name) for row in settings.rows for side in (ON, PEER)
    ]
    lines = [_line(mine, measured, bound) for mine in groups if mine]
    more: dict[str, Any] = {"bound": asdict(bound)} if bound else {}
    notes = [_NOTE, *([_ceiling_note(bound)] if bound else [])]
    table = Table("offline", ("engine", "requests of"), _COLUMNS[: None if bound else -1], SIDES)
    return table.result(summary, settings, measured, lines, notes, **more)


_COLUMNS = (
    Column("tokens_per_second", "tokens/s", "{:.1f}", chart="Throughput (tokens/s)"),
    Column("generated_per_second", "generated/s", "{:.1f}"),
    Column("requests_per_second", "requests/s"),
    Column("peak_gb", "peak memory", "{0.most:.2f} GB"),
    Column("ratio", "of LoRA off", "{:.2f}", "1", "Of LoRA off, side by side (ratio)", 1.0),
    Column("of_ceiling", "of the ceiling"),
)
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


def _line(mine: Sequence[Measured], measured: Sequence[Measured], bound: Bound | None) -> Line:
    """One row on one side, or all of LoRA off; a ratio is to LoRA off in the same round."""
    side, row = mine[0].side, "base" if mine[0].side == OFF else mine[0].row
    off = in_order(measured, side=OFF, row=row) if side != OFF else []
    shares = ratios([each.tokens for each in mine], [each.tokens for each in off]) if off else []
    figures = {
        "tokens_per_second": [each.tokens for each in mine],
        "generated_per_second": [each.output_tokens / each.seconds for each in mine],
        "requests_per_second": [each.requests / each.seconds for each in mine],
        "peak_gb": [(each.gpu_bytes or each.peak_bytes) / 1e9 for each in mine],
        "ratio": shares,
        "of_ceiling": [bound.seconds / each.seconds for each in mine] if bound else [],
    }
    return Line({"side": side, "row": row}, row, figures)
