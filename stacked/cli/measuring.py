"""What the `stacked bench` commands share: options, preparing, measuring, saving figures."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import DataDir, data_dir_of

if TYPE_CHECKING:
    from stacked.bench.report import Result
    from stacked.config import Config
    from stacked.terminal import Terminal

what = partial(typer.Option, rich_help_panel="What is measured")
how = partial(typer.Option, rich_help_panel="How")
kept = partial(typer.Option, rich_help_panel="Where the figures go", show_default=False)

PromptTokens = Annotated[int, what(min=1, help="Tokens of each prompt.")]
OutputTokens = Annotated[int, what(min=1, help="Tokens of each answer.")]
Rounds = Annotated[int, how(min=1, help="Times everything.")]
Together = Annotated[
    bool,
    how(
        "--together/--apart",
        help="All engines alive, one of them at work; otherwise one alive at a time.",
    ),
]


class Peer(StrEnum):
    """What can be measured in the same run."""

    VLLM = "vllm"


@dataclass(frozen=True)
class Common:
    """What is measured, and where its figures go."""

    base: Annotated[
        str,
        what(
            help="A directory, a Hub id, a prepared name; `tiny`: two layers, so that what serving "
            "costs shows; llama-1b, llama-3b, llama-8b: those sizes, weights drawn by vLLM."
        ),
    ] = "smollm2-135m-instruct"
    adapter: Annotated[
        list[Path] | None,
        what(
            help="An adapter's directory, repeatable; without it, random adapters are made.",
            show_default=False,
        ),
    ] = None
    rank: Annotated[int, what(min=1, help="Of random adapters.")] = 8
    targets: Annotated[str, what(help="Of random adapters: attention or all-linear.")] = "attention"
    engine: Annotated[
        list[str] | None,
        what(
            metavar="NAME=VALUE",
            help="An option of vLLM such as max_model_len=512, repeatable.",
            show_default=False,
        ),
    ] = None
    peer: Annotated[
        Peer | None, how(help="Measure vLLM's own in the same run.", show_default=False)
    ] = None
    data_dir: DataDir = None
    json: Annotated[Path | None, kept(help="Write the figures here.")] = None
    table: Annotated[Path | None, kept(help="Write the table here, as Markdown.")] = None
    plot: Annotated[Path | None, kept(help="Draw a plot here, .svg or .png.")] = None
    note: Annotated[str, kept(help="A note to store with the figures.")] = ""


Command = Callable[..., None]


def with_common(**defaults: Any) -> Callable[[Command], Command]:
    """Give a command the fields of Common as options; it gets them as its first argument.

    `defaults` replace those of Common.
    """
    common = [
        each.replace(default=defaults.get(each.name, each.default))
        for each in signature(Common, eval_str=True).parameters.values()
    ]

    def flattened(command: Command) -> Command:
        _, *own = signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def flat(**given: Any) -> None:
            command(Common(**{each.name: given.pop(each.name) for each in common}), **given)

        options = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*common, *own)]
        flat.__signature__ = Signature(options)  # type: ignore[attr-defined]
        return flat

    return flattened


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
