"""The commands' output: steps with seconds, errors in one line, tables.

Everything that is not a command's answer goes to stderr, and without a terminal it is plain lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from stacked.steps import Step, sentence


def printable(text: str) -> str:
    """The text with what a terminal would obey escaped, other than line ends and tabs.

    Names and messages may come from an adapter's files, or from a server.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )


class _Console(Console):
    """rich's, which passes control characters on."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown = (printable(each) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)


# Without a terminal there is no width to cut lines to.
_WIDE = 10_000
out = _Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
err = _Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _WIDE)


class Terminal:
    """A Progress that shows each step as it runs and with its seconds once it is done.

    A context manager: leaving it ends the last step, as failed after an exception.
    """

    def __init__(self, console: Console = err) -> None:
        self._console = console
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""
        self._step: Step | None = None
        self._began = 0.0

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        """See `stacked.steps.Progress`. A step in progress moves its bar."""
        text = sentence(step, detail)
        if step is not self._step:
            self.begin(text)
            self._step = step
        elif self._live is not None and self._task is not None:
            self._live.update(self._task, description=printable(text))
        self._text = printable(text)
        if done:
            self.fraction(done)

    def begin(self, text: str, bytes: int | None = None) -> None:
        """The previous work is done; this begins. `bytes`: how many it moves, see `moved`."""
        self.done()
        text = printable(text)
        self._text, self._began = text, time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"  … {text}", markup=False)
            return
        amount: tuple[ProgressColumn, ...] = ()
        if bytes is not None:
            amount = (DownloadColumn(), TransferSpeedColumn())
        self._live = Progress(
            TextColumn(" "),
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24, pulse_style="bar.back"),
            *amount,
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=4,  # a busy CPU is needed for answers
            # What others write to stdout and stderr must not be reflowed.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._live.add_task(text, total=bytes)
        self._live.start()

    def note(self, text: str) -> None:
        """Something worth a line that is not a step."""
        for line in text.splitlines():
            self._console.print(f"    {line}", markup=False)

    def fraction(self, done: float) -> None:
        """How much of the current step is done, from 0 to 1."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, total=1.0, completed=min(done, 1.0))

    def moved(self, count: int) -> None:
        """So many more bytes of the current step."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task, count)

    def done(self, mark: str = "✓", style: str = "green") -> None:
        """The current step is over, and no other begins."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._text:
            seconds = time.monotonic() - self._began
            self._console.print(f"  [{style}]{mark}[/]", end=" ")
            self._console.print(f"{self._text}  {seconds:.1f} s", markup=False)
            self._text = ""
        self._step = None

    def finish(self, text: str) -> None:
        """The work is over; `text` is shown as its result."""
        self.done()
        self._console.print(f"  ✓ {text}", markup=False)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.done()
        else:
            self.done(mark="✗", style="red")


def show_error(code: str, sentence: str) -> None:
    """One line (or one for each cause) on stderr, red on a terminal."""
    for line in sentence.splitlines() or [""]:
        err.print(f"error [{code}]: {line}", style="red", markup=False)


def size(count: float) -> str:
    """Bytes to display: 1.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError  # the loop ends at GB


def write(text: str) -> None:
    """Print a piece of an answer at once; unchanged where nobody looks at it."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(value: object) -> None:
    """Print a value as one line of JSON."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def table(
    header: Sequence[str] | None, rows: Sequence[Sequence[object]], marks: Sequence[str] = ()
) -> Table:
    """Rows as plain text, folded and never cut; a column that is empty in every row is left out.

    `marks`, one for each row, come before it and may have rich's markup.
    """
    shown = Table(box=None, show_header=header is not None, pad_edge=False, padding=(0, 2, 0, 0))
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    width = max((len(row) for row in rows), default=len(header or ()))
    full = [at for at in range(width) if not rows or any(row[at] for row in texts)]
    if marks:
        shown.add_column(no_wrap=True)
    for at in full:
        # The first column names the row: it is short, and useless if cut.
        shown.add_column(header[at] if header else "", overflow="fold", no_wrap=at == 0)
    for at, row in enumerate(texts):
        plain = [Text(printable(row[column])) for column in full]
        shown.add_row(*([Text.from_markup(marks[at])] if marks else []), *plain)
    return shown
