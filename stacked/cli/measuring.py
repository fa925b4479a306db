"""What the `stacked bench` commands share: preparing, measuring, showing and saving figures."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stacked.cli.bench_options import Common
from stacked.cli.shared import data_dir_of

if TYPE_CHECKING:
    from stacked.bench.report import Result
    from stacked.config import Config
    from stacked.terminal import Terminal


def measure(
    common: Common,
    run: Callable[[Any, Any, Path, Terminal], Result],
    settings: Any,
    count: int,
    config: Path | None = None,
    read: Callable[[Config, Path], Any] | None = None,
) -> None:
    """Prepare `count` adapters, measure, show and write; exits with 1 if a promise was broken.

    `read` makes of a `config` what is measured; by default it is a Subject, as without a file.
    SIGTERM acts as ^C.
    """
    from stacked.bench.children import ended_by_signals
    from stacked.bench.plot import check_plot
    from stacked.bench.subject import Requested, engine_options, prepare, subject_of
    from stacked.config import load
    from stacked.terminal import Terminal, err, out, table

    if common.plot is not None:
        check_plot(common.plot)
    options = engine_options(common.engine or ())
    requested = Requested(common.base, common.adapter or (), common.rank, common.targets, options)
    data = data_dir_of(common.data_dir)
    with (
        ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="stacked-bench-") as name,
        Terminal() as tell,
    ):
        place = Path(name)
        if config is not None:
            subject = (read or subject_of)(load(config), data)
        else:
            subject = prepare(requested, count, place, data, tell)
        result = run(subject, settings, place / "run", tell)
    out.print(table(result.header, result.rows))
    for note in result.notes:
        out.print(note, markup=False)
    _write(result, common)
    for line in result.violations:
        err.print(f"violation: {line}", style="red", markup=False)
    if result.violations:
        raise typer.Exit(1)


def _write(result: Result, common: Common) -> None:
    from stacked.bench.plot import draw
    from stacked.bench.report import as_json, markdown, with_circumstances, write

    figures = with_circumstances(result.data, command_line(), common.note)
    if common.json is not None:
        write(as_json(figures), common.json)
    if common.table is not None:
        write(markdown(result, figures), common.table)
    if common.plot is not None:
        subject, machine = result.data["subject"], figures["machine"]
        on = (machine["gpus"] or [machine["cpu"]])[0]
        draw(result.charts, f"stacked bench {result.name}: {subject['base']} on {on}", common.plot)


def command_line() -> list[str]:
    """The command as typed, without its note and the files for its figures."""
    typed, words = iter(sys.argv[1:]), ["stacked"]
    for word in typed:
        name, has_value, _ = word.partition("=")
        if name not in _KEPT_APART:
            words.append(word)
        elif not has_value:
            next(typed, None)
    return words


_KEPT_APART = ("--json", "--table", "--plot", "--note", "--data-dir")
