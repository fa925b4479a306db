"""What a person sees: steps with seconds, one line for an error, rows that are never cut."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from stacked import terminal
from stacked.steps import Start
from stacked.terminal import Terminal, printable, show_error, size, table, write


def plain() -> tuple[Console, io.StringIO]:
    """A console that is not a terminal, and what was written to it."""
    written = io.StringIO()
    return Console(file=written, width=10_000, highlight=False), written


def test_without_a_terminal_steps_are_plain_lines() -> None:
    console, written = plain()
    with Terminal(console) as progress:
        progress.begin("one [1/2]")
        progress.fraction(0.5)
        progress.note("a\nb")
        progress.begin("two")
    lines = re.sub(r"\d+\.\d s", "N s", written.getvalue()).splitlines()
    assert lines == [
        "  … one [1/2]",
        "    a",
        "    b",
        "  ✓ one [1/2]  N s",
        "  … two",
        "  ✓ two  N s",
    ]
    assert "\x1b" not in written.getvalue()


def test_a_step_that_goes_on_is_one_line() -> None:
    console, written = plain()
    with Terminal(console) as progress:
        for done in (1, 2, 3):
            progress.step(Start.LOAD, done / 3, f"{done}/3")
        progress.step(Start.VERIFY)
    lines = re.sub(r"\d+\.\d s", "N s", written.getvalue()).splitlines()
    assert lines == [
        "  … Loading the members: 1/3",
        "  ✓ Loading the members: 3/3  N s",
        "  … Verifying the members",
        "  ✓ Verifying the members  N s",
    ]


def test_on_a_terminal_a_step_that_goes_on_moves_its_bar() -> None:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, highlight=False)
    with Terminal(console) as progress:
        progress.step(Start.LOAD, 0.0, "0/4")
        progress.step(Start.LOAD, 0.5, "2/4")
        assert progress._live is not None
        assert [task.percentage for task in progress._live.tasks] == [50]
    assert "2/4" in written.getvalue()


def test_what_stands_at_the_end_is_not_a_step_that_runs_on() -> None:
    console, written = plain()
    with Terminal(console) as progress:
        progress.begin("one")
        progress.finish("serving")
    assert written.getvalue().splitlines()[-1] == "  ✓ serving"


def test_the_step_that_failed_is_marked() -> None:
    console, written = plain()

    def work() -> None:
        with Terminal(console) as progress:
            progress.begin("one")
            raise ValueError

    with pytest.raises(ValueError):
        work()
    assert "✗ one" in written.getvalue()


def test_on_a_terminal_a_step_shows_while_it_runs() -> None:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, highlight=False)
    with Terminal(console) as progress:
        progress.begin("one")
        progress.fraction(0.5)
    assert "one" in written.getvalue()
    assert written.getvalue().rstrip().endswith("s")
    assert "✓" in written.getvalue()


def test_on_a_terminal_a_step_that_moves_bytes_shows_how_many_of_how_many() -> None:
    written = io.StringIO()
    console = Console(file=written, width=120, force_terminal=True, highlight=False)
    with Terminal(console) as progress:
        progress.begin("sending", 4_000_000)
        progress.moved(1_000_000)
        progress.moved(2_000_000)
    assert "3.0/4.0 MB" in written.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1900, "1.9 kB"), (1.9e6, "1.9 MB"), (5e13, "50000.0 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_a_table_leaves_out_what_is_empty_and_cuts_nothing() -> None:
    console, written = plain()
    console.print(table(["key", "id", "state"], [["a" * 200, "", "[live]"], ["b", "", ""]]))
    header, first, second = (line.split() for line in written.getvalue().splitlines())
    assert header == ["key", "state"]
    assert first == ["a" * 200, "[live]"]
    assert second == ["b"]


# An escape that clears the screen, one that names the window, a line that is not its own, a mark
# that turns the direction of writing, and what no encoding has.
HOSTILE = "a\x1b[2J\x1b]0;b\x07\rc\x9b31m\u202e\ud800"
SHOWN = r"a\x1b[2J\x1b]0;b\x07\rc\x9b31m\u202e\ud800"


def test_a_terminal_obeys_no_name_or_message(capsys: pytest.CaptureFixture[str]) -> None:
    """Of an adapter's files, or of a server."""
    assert printable(HOSTILE) == SHOWN
    assert printable("größe\t大\nb") == "größe\t大\nb"
    show_error("X", HOSTILE)
    terminal.out.print(table(["a"], [[HOSTILE]]))
    terminal.out.print(HOSTILE, markup=False)
    with Terminal() as progress:
        progress.begin(HOSTILE)
        progress.note(HOSTILE)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert text.count(SHOWN) >= 2
        assert all(each.isprintable() or each == "\n" for each in text)


def test_an_answer_is_unchanged_except_where_somebody_looks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a\x1b[2J")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write("a\x1b[2J")
    assert capsys.readouterr().out == "a\x1b[2Ja\\x1b[2J"
