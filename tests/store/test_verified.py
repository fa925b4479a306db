"""Digests that are remembered across processes, whatever became of the file."""

from __future__ import annotations

from pathlib import Path

from stacked.core import Digest
from stacked.store.verified import Verified

ONE, TWO = (Digest(f"sha256:{digit * 64}") for digit in "12")


def test_what_was_added_is_known_to_the_next_process(tmp_path: Path) -> None:
    first = Verified(tmp_path / "engine" / "v")
    assert ONE not in first
    first.add([ONE, TWO])
    first.add([ONE])
    again = Verified(tmp_path / "engine" / "v")
    assert ONE in again
    assert TWO in again
    assert (tmp_path / "engine" / "v").read_text().count(ONE) == 1


def test_a_line_that_was_cut_short_counts_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "v"
    file.write_text(f"{ONE}\n{TWO[:40]}")
    cut = Verified(file)
    assert ONE in cut
    assert TWO not in cut
    cut.add([TWO])
    assert TWO in Verified(file)


def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = Verified(tmp_path / "file" / "v")
    nowhere.add([ONE])
    assert ONE in nowhere
    assert ONE not in Verified(tmp_path / "file" / "v")
