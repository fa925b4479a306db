"""Options that several of the `stacked bench` commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHAT, HOW, OUT = "What is measured", "How", "Where the figures go"

Base = Annotated[
    str,
    typer.Option(
        help="A directory, a Hub id, a prepared name; `tiny`: two layers, so that what serving "
        "costs shows; llama-1b, llama-3b, llama-8b: those sizes, weights drawn by vLLM.",
        rich_help_panel=WHAT,
    ),
]
AdapterDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        help="An adapter's directory, repeatable; without it, random adapters are made.",
        rich_help_panel=WHAT,
        show_default=False,
    ),
]
Rank = Annotated[int, typer.Option(min=1, help="Of random adapters.", rich_help_panel=WHAT)]
Targets = Annotated[
    str,
    typer.Option(help="Of random adapters: attention or all-linear.", rich_help_panel=WHAT),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME=VALUE",
        help="An option of vLLM such as max_model_len=512, repeatable.",
        rich_help_panel=WHAT,
        show_default=False,
    ),
]
PromptTokens = Annotated[
    int, typer.Option(min=1, help="Tokens of each prompt.", rich_help_panel=WHAT)
]
OutputTokens = Annotated[
    int, typer.Option(min=1, help="Tokens of each answer.", rich_help_panel=WHAT)
]
Rounds = Annotated[int, typer.Option(min=1, help="Times everything.", rich_help_panel=HOW)]
Peer = Annotated[
    str | None,
    typer.Option(
        metavar="vllm",
        help="Measure vLLM's own in the same run.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
Together = Annotated[
    bool,
    typer.Option(
        "--together/--apart",
        help="All engines alive, one of them at work; otherwise one alive at a time.",
        rich_help_panel=HOW,
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write the figures here.", rich_help_panel=OUT, show_default=False),
]
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--table",
        help="Write the table here, as Markdown.",
        rich_help_panel=OUT,
        show_default=False,
    ),
]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot", help="Draw a plot here, .svg or .png.", rich_help_panel=OUT, show_default=False
    ),
]
Note = Annotated[str, typer.Option(help="A note to store with the figures.", rich_help_panel=OUT)]
