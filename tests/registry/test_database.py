"""What holds for a file and for a server: failures as one class of error, threads, references."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Text, delete, select, type_coerce, update

from stacked.errors import IllegalMove, RecordConflict, RecordInvalid, RegistryUnusable
from stacked.registry import (
    HISTORY,
    DeployedMember,
    DeploymentState,
    MemberState,
    Query,
    Registry,
    Shared,
    VersionHistory,
    new_id,
)
from stacked.registry.schema import metadata, models
from stacked.registry.work_requests import log
from tests.registry.samples import BASE, adapter, base, deployed, group, started, stocked


def test_nothing_is_kept_of_a_transaction_that_fails(registry: Registry) -> None:
    registry.models.put(base())

    def contradict() -> None:
        with registry._database.write() as connection:
            connection.execute(update(models).values(display_name="lost"))
            log(connection, "absent", "m")

    with pytest.raises(RecordConflict):
        contradict()
    assert registry.models.get(BASE).display_name == "base"


def test_value_that_cannot_be_read_is_reported(registry: Registry) -> None:
    registry.models.put(adapter(1))
    with registry._database.write() as connection:
        connection.execute(update(models).values(state=type_coerce("PURPLE", Text)))
    with pytest.raises(RegistryUnusable, match="'PURPLE' as ModelState"):
        registry.models.get(adapter(1).id)


def test_closed_registry_says_so(where: Path | Shared) -> None:
    registry = Registry(where)
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
        rows = metadata.tables[table]
        connection.execute(delete(rows).where(rows.c.id == id))


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
            left = connection.execute(select(metadata.tables[table])).all()
            assert (table, left) == (table, [])
    kept = registry.groups.get(clone)
    assert (kept.source_group_id, len(kept.members)) == (None, 2)


def test_what_another_record_names_cannot_be_deleted(registry: Registry) -> None:
    stocked(registry)
    deployment, request = deployed(registry).id, started(registry)
    made = registry.groups.create(group(1)).id
    registry.deployments.commit(deployment, made, 1, request)
    named = [("models", BASE), ("models", adapter(1).id)]
    for table, id in (*named, ("model_groups", made), ("work_requests", request)):
        with pytest.raises(RecordConflict, match=r"(?i)foreign key"):
            remove(registry, table, id)


def test_text_with_a_zero_byte_is_stored_or_refused(where: Path | Shared) -> None:
    with Registry(where) as registry:
        if isinstance(where, Path):
            assert registry.models.put(adapter(1, display_name="a\0")).display_name == "a\0"
            return
        with pytest.raises(RecordInvalid, match="cannot have this value"):
            registry.models.put(adapter(1, display_name="a\0"))
        with pytest.raises(RecordInvalid):
            registry.models.list(display_name="a\0")
        assert registry.models.list().items == ()
