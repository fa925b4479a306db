"""What several commands share: options, the way an error ends a command, a client of a server."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from stacked.client import Client
    from stacked.engine.adaptable import Asking
    from stacked.store.adaptable import Adaptable

optional = partial(typer.Option, show_default=False)
HELP = {"help_option_names": ["-h", "--help"]}

DataDir = Annotated[
    Path | None,
    optional(
        help="Where bases, adapters and records are stored. Default: $STACKED_DATA_DIR, else "
        ".stacked here if there is one, else ~/.local/share/stacked."
    ),
]
Url = Annotated[
    str | None, optional(help="The server. Default: $STACKED_URL, else http://127.0.0.1:8080.")
]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Show it again whenever it changes, until ^C.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def data_dir_of(given: Path | None) -> Path:
    """The data directory of a command."""
    from stacked.bases import default_data_dir

    return given.expanduser().absolute() if given else default_data_dir()


def fail(code: str, sentence: str) -> NoReturn:
    """End the command with 1, its error in one line on stderr."""
    from stacked.terminal import show_error

    show_error(code, sentence)
    sys.exit(1)


def server(url: str | None) -> Client:
    """A client of a server; what it raises ends the command."""
    from stacked.client import Client

    return Client(url)


def conclusions(phase: dict[str, Any]) -> list[str]:
    """What is to be said of an experiment's phase: of feedback, and of what else is certain."""
    certain = {"better", "worse", "different"}
    alone = len(phase["metrics"]) == 1
    return [
        sentence
        for metric in phase["metrics"]
        if any(arm["units"] for arm in metric["arms"])
        for arm, sentence in zip(metric["arms"][1:], metric["sentences"], strict=False)
        if alone or metric["feedback"] or arm["verdict"] in certain
    ]


def brief(content: str | None) -> str:
    """Twelve characters of a digest or model id, to be displayed."""
    return (content or "").removeprefix("sha256:").rpartition(".")[2][:12]


class AskedAtOnce:
    """An engine's probe that runs as soon as its answer is needed, with a progress line.

    A start avoids the probe where it can, as the engine itself will give the answer; a check
    cannot. See `stacked.store.adaptable.Engine`.
    """

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def known(self) -> Adaptable:
        """The answer of vLLM's class; half a minute the first time. Raises BaseUnsupported."""
        return self.ask()

    def ask(self) -> Adaptable:
        from stacked.terminal import Terminal

        known = self._asking.known()
        if known is not None:
            return known
        with Terminal() as progress:
            progress.begin("Finding what vLLM can adapt (once for each base)")
            return self._asking.ask()
