"""A file: its settings, and its failures as one class of error."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stacked.errors import RegistryUnusable
from stacked.registry import Registry
from tests.registry.samples import adapter, stocked


@pytest.fixture
def file(path: Path) -> Iterator[Registry]:
    with Registry(path) as opened:
        yield opened


def test_every_connection_is_durable_and_keeps_references(file: Registry) -> None:
    with file._database.write() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]
        assert found == ["wal", 2, 1]


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"a diary, not a database; " * 100)
    with pytest.raises(RegistryUnusable, match=r"not a database; .*move it away") as raised:
        Registry(path)
    assert str(path) in str(raised.value)


def test_place_that_cannot_hold_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegistryUnusable, match="cannot be used"):
        Registry(tmp_path / "file" / "registry.db")
    (tmp_path / "directory").mkdir()
    with pytest.raises(RegistryUnusable, match="unable to open"):
        Registry(tmp_path / "directory")


def test_damaged_page_is_found_when_the_file_is_opened(path: Path) -> None:
    with Registry(path) as registry:
        registry.models.put_all([adapter(number) for number in range(200)])
    content = bytearray(path.read_bytes())
    for at in range(2 * 4096, len(content), 4096):
        content[at : at + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(RegistryUnusable, match=r"malformed.*restore it from a copy"):
        Registry(path)


def test_full_disk_is_told_and_what_was_there_stays(file: Registry) -> None:
    stocked(file)
    with file._database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RegistryUnusable, match="full; free some space"):
        file.models.put_all([adapter(number) for number in range(4, 500)])
    assert len(file.models.list().items) == 5
    with file._database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    file.models.put_all([adapter(number) for number in range(4, 500)])


def test_read_only_file_is_reported(file: Registry) -> None:
    with file._database.write() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(RegistryUnusable, match="write permission"):
        file.models.put(adapter(1))


def test_file_that_another_process_holds_is_told_and_reads_go_on(path: Path) -> None:
    with Registry(path, busy_seconds=0.05) as registry, closing(sqlite3.connect(path)) as other:
        registry.models.put(adapter(1))
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnusable, match="locked; another process"):
            registry.models.put(adapter(2))
        assert len(registry.models.list().items) == 1
        other.execute("ROLLBACK")
        registry.models.put(adapter(2))
