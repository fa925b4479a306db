"""Failures of the file as one class of error, threads, and the settings of SQLite."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from stacked.errors import IllegalMove, RecordConflict, RegistryUnusable
from stacked.registry import (
    HISTORY,
    DeployedMember,
    DeploymentState,
    MemberState,
    Query,
    Registry,
    VersionHistory,
    new_id,
)
from tests.registry.samples import BASE, adapter, deployed, group, started, stocked


def test_every_connection_is_durable_and_keeps_references(registry: Registry) -> None:
    with registry._database.write() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]
        assert found == ["wal", 2, 1]


def test_nothing_is_kept_of_a_transaction_that_fails(registry: Registry) -> None:
    columns = "(work_request_id, message, time)"
    with pytest.raises(RecordConflict), registry._database.write() as connection:
        connection.exec_driver_sql(f"INSERT INTO work_logs {columns} VALUES ('absent', 'm', 't')")
    assert registry.work_requests.list().items == ()


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


def test_value_that_cannot_be_read_is_reported(path: Path) -> None:
    with Registry(path) as registry:
        registry.models.put(adapter(1))
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE models SET state = 'PURPLE'")
            other.commit()
        with pytest.raises(RegistryUnusable, match="'PURPLE' as ModelState"):
            registry.models.get(adapter(1).id)


def test_full_disk_is_told_and_what_was_there_stays(registry: Registry) -> None:
    stocked(registry)
    with registry._database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RegistryUnusable, match="full; free some space"):
        registry.models.put_all([adapter(number) for number in range(4, 500)])
    assert len(registry.models.list().items) == 5
    with registry._database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    registry.models.put_all([adapter(number) for number in range(4, 500)])


def test_read_only_file_is_reported(registry: Registry) -> None:
    with registry._database.write() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(RegistryUnusable, match="write permission"):
        registry.models.put(adapter(1))


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


def test_closed_registry_says_so(path: Path) -> None:
    registry = Registry(path)
    registry.close()
    registry.close()
    with pytest.raises(RegistryUnusable, match="closed"):
        registry.models.list()


def test_threads_write_and_read_at_once(registry: Registry) -> None:
    stocked(registry)
    line = registry.histories.create(VersionHistory(id=new_id(HISTORY)))
    requests = [registry.work_requests.open("X").id for _ in range(4)]
    stop = threading.Event()

    def write(number: int) -> None:
        for at in range(10):
            registry.models.put(adapter(1000 * number + at))
            registry.work_requests.advance(requests[at % 4], at + number, f"{number} {at}")
            registry.groups.create(group(1, version_history_id=line.id))

    def read() -> int:
        highest = [0.0] * 4
        reads = 0
        while not stop.is_set():
            now = [registry.work_requests.get(id).percent for id in requests]
            assert all(a <= b for a, b in zip(highest, now, strict=True))
            highest = now
            reads += len(registry.groups.list(Query(limit=5)).items[0:1])
        return reads

    with ThreadPoolExecutor(12) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            list(pool.map(write, range(1, 7)))
        finally:
            stop.set()
        assert all(reader.result() for reader in readers)
    listed = registry.groups.list(Query(limit=1000), version_history_id=line.id).items
    assert sorted(found.version or 0 for found in listed) == list(range(1, 61))
    assert sum(len(registry.work_requests.list_logs(id).items) for id in requests) == 60


def test_of_many_threads_one_begins_an_update(registry: Registry) -> None:
    id = deployed(registry).id
    registry.deployments.set_state(id, DeploymentState.ACTIVE)
    barrier = threading.Barrier(8)

    def begin(_: int) -> bool:
        barrier.wait()
        try:
            registry.deployments.set_state(id, DeploymentState.UPDATING)
        except IllegalMove:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(8))) == 1


def remove(registry: Registry, table: str, id: str) -> None:
    with registry._database.write() as connection:
        connection.exec_driver_sql(f"DELETE FROM {table} WHERE id = ?", (id,))


def test_rows_that_are_about_one_record_alone_are_deleted_with_it(registry: Registry) -> None:
    stocked(registry)
    request = registry.work_requests.open("X").id
    registry.work_requests.advance(request, 1, "begun")
    registry.work_requests.fail(request, "C", "m")
    source = registry.groups.create(group(1)).id
    clone = registry.groups.create(group(2, create_type="CLONE", source_group_id=source)).id
    deployment = deployed(registry).id
    state = DeployedMember(model_id=adapter(1).id, state=MemberState.FAILED)
    registry.deployments.put_members(deployment, source, [state])
    remove(registry, "work_requests", request)
    remove(registry, "model_groups", source)
    with registry._database.read() as connection:
        for table in ("work_logs", "work_errors", "deployed_members"):
            left = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            assert (table, left) == (table, 0)
    kept = registry.groups.get(clone)
    assert (kept.source_group_id, len(kept.members)) == (None, 2)


def test_what_another_record_names_cannot_be_deleted(registry: Registry) -> None:
    stocked(registry)
    deployment, request = deployed(registry).id, started(registry)
    made = registry.groups.create(group(1)).id
    registry.deployments.commit(deployment, made, 1, request)
    named = [("models", BASE), ("models", adapter(1).id)]
    for table, id in (*named, ("model_groups", made), ("work_requests", request)):
        with pytest.raises(RecordConflict, match="FOREIGN KEY"):
            remove(registry, table, id)
