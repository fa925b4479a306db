"""What the `stacked bench` commands share: preparing, measuring, showing and saving figures."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stacked.cli.shared import fail

if TYPE_CHECKING:
    from stacked.bench.report import Result
    from stacked.bench.subject import Requested, Subject
    from stacked.config import Config
    from stacked.terminal import Terminal

Outputs = tuple[Path | None, Path | None, Path | None, str]
"""Where JSON, table and plot go, and a note to store with them."""

Run = Callable[["Subject", Path, "Terminal"], "Result"]


@contextmanager
def ends_well() -> Iterator[None]:
    """Within the block errors end the command, and SIGTERM acts as ^C."""
    from stacked.bench.children import ended_by_signals
    from stacked.client import ClientError

    try:
        with ended_by_signals():
            yield
    except ClientError as error:
        fail(error.code, str(error))


def is_peer(name: str | None) -> bool:
    from stacked.errors import ParameterInvalid

    if name not in (None, "vllm"):
        raise ParameterInvalid(f"no peer {name!r}; there is vllm")
    return name is not None


def requested_of(
    base: str, adapter: list[Path] | None, rank: int, targets: str, engine: list[str] | None
) -> Requested:
    from stacked.bench.subject import Requested, engine_options

    return Requested(base, adapter or (), rank, targets, engine_options(engine or ()))


def measure(
    run: Run,
    requested: Requested,
    count: int,
    data_dir: Path | None,
    where: Outputs,
    config: Path | None = None,
) -> None:
    """Prepare, measure, show and write."""
    from stacked.bases import default_data_dir
    from stacked.bench.plot import check_plot
    from stacked.bench.subject import prepare, subject_of
    from stacked.config import load
    from stacked.terminal import Terminal, out, table

    if where[2] is not None:
        check_plot(where[2])
    data = data_dir or default_data_dir()
    with tempfile.TemporaryDirectory(prefix="stacked-bench-") as name, Terminal() as tell:
        place = Path(name)
        if config is not None:
            subject = subject_of(load(config), data)
        else:
            subject = prepare(requested, count, place, data, tell)
        result = run(subject, place / "run", tell)
    out.print(table(result.header, result.rows))
    for each in result.notes:
        out.print(each, markup=False)
    _write(result, where)


def _write(result: Result, where: Outputs) -> None:
    from stacked.bench.plot import draw
    from stacked.bench.report import with_circumstances, write_json, write_markdown

    json_file, table_file, plot_file, note = where
    figures = with_circumstances(result.data, command_line(), note)
    if json_file is not None:
        write_json(figures, json_file)
    if table_file is not None:
        write_markdown(result, figures, table_file)
    if plot_file is not None:
        subject = result.data["subject"]
        machine = figures["machine"]
        on = (machine["gpus"] or [machine["cpu"]])[0]
        draw(result.charts, f"stacked bench {result.name}: {subject['base']} on {on}", plot_file)


def command_line() -> list[str]:
    """The command as typed, without its note and the files for its figures."""
    words, skip = ["stacked"], False
    for word in sys.argv[1:]:
        if skip or word.startswith(tuple(f"{name}=" for name in _KEPT_APART)):
            skip = False
            continue
        skip = word in _KEPT_APART
        if not skip:
            words.append(word)
    return words


_KEPT_APART = ("--json", "--table", "--plot", "--note", "--data-dir")


def storm(
    config: Path | None,
    requested: Requested,
    adapters: int,
    settings: tuple[int, int, int, int, int],
    data_dir: Path | None,
    where: Outputs,
) -> None:
    """Run the storm and show it; exits with 1 if a promise was broken."""
    from stacked.bases import default_data_dir
    from stacked.bench.report import with_circumstances, write_json
    from stacked.bench.storm import Settings, run_storm
    from stacked.bench.storm_table import rows_of, violations_of
    from stacked.bench.subject import config_of, prepare
    from stacked.config import load
    from stacked.errors import ParameterInvalid
    from stacked.terminal import Terminal, err, out, table

    if where[1] is not None or where[2] is not None:
        raise ParameterInvalid("the storm only writes --json; --table and --plot go with --gaps")
    with tempfile.TemporaryDirectory(prefix="stacked-bench-") as name, Terminal() as tell:
        place = Path(name)
        tree: Config
        if config is not None:
            tree = load(config)
        else:
            data = data_dir or default_data_dir()
            tree = config_of(prepare(requested, adapters, place, data, tell))
        figures = run_storm(tree, Settings(*settings), place, tell)
    if where[0] is not None:
        write_json(with_circumstances(figures, command_line(), where[3]), where[0])
    out.print(table(None, rows_of(figures)))
    for line in violations_of(figures):
        err.print(f"violation: {line}", style="red", markup=False)
    if figures.get("violations"):
        raise typer.Exit(1)
