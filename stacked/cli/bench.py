"""`stacked bench swap`: LIVE updates measured and judged, on a server that the command starts.

It prints what the benchmark returns; it must not know how that is found.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import fail

if TYPE_CHECKING:
    from stacked.config import Config
    from stacked.terminal import Terminal

bench = typer.Typer(
    name="bench",
    help="Measure on this machine, with a server of its own.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@bench.callback()
def _commands() -> None:
    """Keeps `swap` a command by its name while it is the only one."""


@bench.command()
def swap(
    config: Annotated[Path, typer.Argument(help="A YAML file; its members are the adapters.")],
    updates: Annotated[int, typer.Option(min=1, help="LIVE updates, at least.")] = 100,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 16,
    groups: Annotated[int, typer.Option(min=4, help="Groups that take turns.")] = 4,
    responses: Annotated[int, typer.Option(min=0, help="Whole answers, at least.")] = 2000,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 16,
    gaps: Annotated[
        bool, typer.Option("--gaps", help="Measure gaps between tokens instead.")
    ] = False,
    streams: Annotated[int, typer.Option(min=1, help="With --gaps: streams at once.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="With --gaps: updates measured.")] = 5,
    steady: Annotated[
        float, typer.Option(min=1, help="With --gaps: seconds without an update, before each.")
    ] = 8.0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the figures to this file.", show_default=False),
    ] = None,
) -> None:
    """LIVE updates under a storm of clients; every answer is compared with a fresh server's.

    Exits with 1 where one answer is lost, mixed, or of a version that was not live. With --gaps:
    how long streams wait between tokens while a LIVE update loads all members but the first.

    Example:  stacked bench swap configs/demo.yaml --updates 100 --clients 16
    """
    from stacked.bench.report import with_circumstances, write_json
    from stacked.client import ClientError
    from stacked.config import load
    from stacked.terminal import Terminal

    tree = load(config)
    try:
        with tempfile.TemporaryDirectory(prefix="stacked-bench-") as name, Terminal() as progress:
            if gaps:
                figures = _gaps(tree, (streams, repeats, steady), Path(name), progress)
            else:
                asked = (updates, clients, groups, responses, max_tokens)
                figures = _storm(tree, asked, Path(name), progress)
    except ClientError as error:
        fail(error.code, str(error))
    if json_file is not None:
        write_json(with_circumstances(figures, _command()), json_file)
    _print(figures)
    if figures.get("violations"):
        raise typer.Exit(1)


def _command() -> list[str]:
    """What was typed, without where its figures go."""
    words = ["stacked", *(word for word in sys.argv[1:] if not word.startswith("--json="))]
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    return words


def _storm(
    tree: Config, asked: tuple[int, int, int, int, int], directory: Path, progress: Terminal
) -> dict[str, Any]:
    from stacked.bench.storm import Settings, run_storm

    return run_storm(tree, Settings(*asked), directory, progress, progress.fraction)


def _gaps(
    tree: Config, asked: tuple[int, int, float], directory: Path, progress: Terminal
) -> dict[str, Any]:
    from stacked.bench.gaps import run_gaps

    return run_gaps(tree, *asked, directory, progress, progress.fraction)


def _print(figures: Mapping[str, Any]) -> None:
    """One line a figure; a figure that has parts, in one line too."""
    from stacked.terminal import err, out, table

    rows = []
    for name, value in figures.items():
        if name in ("groups", "first_violations", "each", "engine"):
            continue
        if name == "phases_seconds":
            rows += [
                [f"seconds {phase}", f"median {each['median']:.3f}, most {each['most']:.3f}"]
                for phase, each in value.items()
            ]
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {count}" for part, count in value.items()) or "none"
        rows.append([name.replace("_", " "), str(value)])
    out.print(table(None, rows))
    for line in figures.get("first_violations", ()):
        err.print(f"violation: {line}", style="red", markup=False)
