"""The options that every `stacked bench` command has, declared once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from stacked.cli.shared import DataDir

what = partial(typer.Option, rich_help_panel="What is measured")
how = partial(typer.Option, rich_help_panel="How")
out = partial(typer.Option, rich_help_panel="Where the figures go", show_default=False)

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
    json: Annotated[Path | None, out(help="Write the figures here.")] = None
    table: Annotated[Path | None, out(help="Write the table here, as Markdown.")] = None
    plot: Annotated[Path | None, out(help="Draw a plot here, .svg or .png.")] = None
    note: Annotated[str, out(help="A note to store with the figures.")] = ""


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
