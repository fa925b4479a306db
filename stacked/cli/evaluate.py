"""`stacked eval`: how good the served models are on an evaluation set, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import Url, brief, optional

if TYPE_CHECKING:
    from stacked.config import EvaluationConfig
    from stacked.experiments.evaluation import Scored
    from stacked.experiments.paired import Interval
    from stacked.terminal import Terminal


@dataclass(frozen=True, slots=True)
class _Row:
    """One key's result; `difference` is to the first key's, on the same examples."""

    key: str
    digest: str
    scored: Sequence[Scored]
    score: Interval
    difference: Interval | None


def evaluate(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Inference keys to score.")],
    file: Annotated[Path, typer.Option("--set", help="The YAML file of the evaluation set.")],
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time.")] = 4,
    wrong: Annotated[
        int, typer.Option(min=0, help="Show so many of each key's worst answers.")
    ] = 0,
    json_file: Annotated[Path | None, optional("--json", help="Write all answers here.")] = None,
    plot: Annotated[Path | None, optional(help="Write a plot here: .svg or .png.")] = None,
    url: Url = None,
) -> None:
    """Score what a running server serves on a set of examples, and compare it with the first key.

    Example:  stacked eval sql sql-v1 --set evals/sql.yaml --wrong 3
    """
    from stacked.config import load_set
    from stacked.experiments.paired import difference, mean_of
    from stacked.experiments.scores import function_of, scores_of
    from stacked.terminal import Terminal

    config = load_set(file)
    own = {config.metric: function_of(config.metric)} if ":" in config.metric else {}
    scores = scores_of(config, own)
    if plot is not None:
        from stacked.bench.plot import check_plot

        check_plot(plot)
    rows: list[_Row] = []
    with Terminal() as progress:
        for key in keys:
            progress.begin(f"{key} on {config.name}, {len(scores)} examples")
            digest, scored = asyncio.run(_asked(url, key, config, scores, parallel, progress))
            mine = [each.score for each in scored]
            first = [each.score for each in rows[0].scored] if rows else None
            gap = difference(mine, first, config.confidence) if first else None
            rows.append(_Row(key, digest, scored, mean_of(mine, config.confidence), gap))
    _print(config, rows, wrong)
    if json_file is not None:
        _write(config, rows, json_file)
    if plot is not None:
        _draw(config, rows, plot)


async def _asked(
    url: str | None,
    key: str,
    config: EvaluationConfig,
    scores: Sequence[Any],
    parallel: int,
    progress: Terminal,
) -> tuple[str, list[Scored]]:
    """The digest of what answered, which is one, and its scores."""
    import httpx

    from stacked.client import Client, ClientError, credential
    from stacked.errors import EvaluationFailed
    from stacked.experiments.evaluation import evaluate

    with Client(url) as client:
        base = client.url
    digests: set[str] = set()
    # A request may wait for all others before it.
    timeout = httpx.Timeout(600, connect=5)
    async with httpx.AsyncClient(base_url=base, auth=credential(), timeout=timeout) as http:

        async def ask(path: str, body: Mapping[str, Any]) -> Any:
            answer = await http.post(path, json={**body, "model": key})
            if not answer.is_success:
                raise EvaluationFailed(f"{key} answered {answer.status_code}: {answer.text:.300}")
            digests.add(answer.headers.get("model-digest", ""))
            if len(digests) > 1:
                raise EvaluationFailed(
                    f"{key} was answered by two adapters ({', '.join(map(brief, digests))}): it "
                    "was replaced meanwhile, or is an experiment, of which an arm must be named"
                )
            return answer.json()

        done = lambda count: progress.fraction(count / len(scores))  # noqa: E731
        try:
            scored = await evaluate(config, scores, ask, parallel=parallel, done=done)
        except httpx.HTTPError as error:
            raise ClientError("ConnectionLost", f"{client.url}: {error or type(error)}") from error
    return min(digests, default=""), scored


def _print(config: EvaluationConfig, rows: Sequence[_Row], wrong: int) -> None:
    from stacked.experiments.evaluation import worst
    from stacked.terminal import out, table

    sure = f"{config.confidence:.0%}"
    header = ["key", "digest", "score", f"{sure} interval", f"difference to {rows[0].key}", sure]
    cells = []
    for row in rows:
        gap = ["", ""] if row.difference is None else _cells(row.difference, "+.3f")
        cells.append([row.key, brief(row.digest), *_cells(row.score, ".3f"), *gap])
    out.print(table(header, cells))
    out.print(f"{config.metric} on {len(config.examples)} examples of {config.name}", markup=False)
    for row in rows:
        for at in worst(row.scored, None, wrong):
            example, each = config.examples[at], row.scored[at]
            last = example.messages[-1].get("content") if example.messages else example.prompt
            text = f"\n{row.key}, example {at + 1}, score {each.score:.3g}: {last}"
            out.print(
                f"{text}\n  wanted: {example.expected}\n  got:    {each.answer}", markup=False
            )


def _cells(interval: Interval, form: str) -> list[str]:
    low, mean, high = (format(each, form) for each in interval)
    return [mean, f"{low} to {high}"]


def _write(config: EvaluationConfig, rows: Sequence[_Row], path: Path) -> None:
    import json

    results = [
        {
            "key": row.key,
            "digest": row.digest,
            "score": row.score._asdict(),
            "difference": row.difference._asdict() if row.difference else None,
            "answers": [each._asdict() for each in row.scored],
        }
        for row in rows
    ]
    tree = config.model_dump(mode="json", include={"name", "metric", "confidence"})
    text = json.dumps({**tree, "results": results}, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _draw(config: EvaluationConfig, rows: Sequence[_Row], path: Path) -> None:
    from stacked.bench.figures import Spread
    from stacked.bench.plot import draw
    from stacked.bench.report import Bar, Chart

    count = len(config.examples)

    def bar(row: _Row, value: Interval) -> Bar:
        return Bar(row.key, config.name, Spread(value.mean, value.low, value.high, count))

    scores = [bar(row, row.score) for row in rows]
    gaps = [bar(row, row.difference) for row in rows if row.difference is not None]
    draw(
        [
            Chart(f"{config.metric}, mean of {count} examples", scores, config.threshold),
            Chart(f"difference to {rows[0].key}", gaps, 0.0),
        ],
        f"{config.name}: bars of {config.confidence:.0%} intervals",
        path,
    )
