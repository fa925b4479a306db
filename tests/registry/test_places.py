"""Where a group's records are, and that nothing begins anew next to what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.errors import RegistryUnusable
from stacked.registry import Shared
from stacked.registry.places import FILE, database_of, note_database, place_of

URL = "postgresql://me:secret@host:5432/db?sslmode=require"


def test_a_file_without_an_address_and_a_schema_with_one(tmp_path: Path) -> None:
    assert place_of(tmp_path, None) == tmp_path / FILE
    place = place_of(tmp_path, URL, 3)
    assert place == Shared(URL, f"stacked_{tmp_path.name}", 3)
    assert "secret" not in repr(place)


def test_records_in_the_other_place_are_not_left_behind(tmp_path: Path) -> None:
    note_database(tmp_path, place_of(tmp_path, URL))
    assert database_of(tmp_path) == "postgresql://host:5432/db"
    with pytest.raises(RegistryUnusable, match=r"are in postgresql://host:5432/db; set storage"):
        place_of(tmp_path, None)
    other = tmp_path / "other"
    other.mkdir()
    (other / FILE).touch()
    with pytest.raises(RegistryUnusable, match="are in a file"):
        place_of(other, URL)


def test_a_file_needs_no_note(tmp_path: Path) -> None:
    note_database(tmp_path, tmp_path / FILE)
    assert database_of(tmp_path) is None
