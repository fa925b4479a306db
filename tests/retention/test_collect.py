"""Rounds over a real store and real records: what goes, what stays, and what a report says."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from stacked.config import RetentionConfig
from stacked.core import VERSIONED, check_digest
from stacked.errors import RecordAbsent
from stacked.registry import GROUP, MODEL, GroupMember, GroupRecord, Model, ModelState, new_id
from stacked.retention.collect import Report
from stacked.retention.plan import Reason
from stacked.store import Incoming, ModelStore, outgoing
from tests.api.control.plane import DEPLOYMENT, archive_of, zipped
from tests.retention.ground import SETTINGS, TAGS, Ground
from tests.store.small import write_adapter, write_base


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path)
    made.stock()
    yield made
    made.registry.close()


def counts(report: Report, kind: str, *, freed: bool) -> dict[str, int]:
    found = (line for line in report.lines if line.kind == kind and line.freed == freed)
    return {line.reason: line.count for line in found}


def test_what_is_named_used_pinned_or_awaited_stays(ground: Ground, tmp_path: Path) -> None:
    model = ground.register(1)
    member = ground.register(2)
    ground.group(member)
    ground.registry.models.set_state(member.id, ModelState.DELETED)
    served = ground.register(3)
    ground.catalogue.delete(served.id)
    ground.in_use = frozenset({served.digest})
    with outgoing(str(ground.sources / "adapter-1")) as ready:
        assert ground.store.holds(ready.digest)
    ground.catalogue.delete(model.id)
    with ground.store.pinned():
        pinned = ground.register(4)
        ground.store.claim(pinned.digest, base=ground.base())
        ground.catalogue.delete(pinned.id)
        report = ground.collect()
    assert ground.digests() == {each.digest for each in (model, member, served, pinned)}
    assert counts(report, "adapters", freed=False) == {
        Reason.NAMED.value: 1,
        Reason.IN_USE.value: 1,
        Reason.PINNED.value: 1,
        Reason.RECENT.value: 1,
    }
    assert ground.collect().freed


def test_a_model_that_is_deleted_gives_its_content_back_at_once(ground: Ground) -> None:
    model, twin = ground.register(1), ground.register(1, "ocid1.datasciencemodel.oc1..twin")
    ground.catalogue.delete(model.id)
    ground.collect()
    assert ground.digests() == {model.digest}, "the twin needs it"
    ground.catalogue.delete(twin.id)
    before = sum(each.bytes for each in ground.store.contents())
    report = ground.collect()
    assert ground.digests() == set()
    (line,) = (line for line in report.lines if line.kind == "adapters")
    assert (line.freed, line.count, line.bytes) == (True, 1, before)


def test_what_no_record_ever_named_goes_when_it_was_not_used_for_long(ground: Ground) -> None:
    digest = ground.store.add(str(write_adapter(ground.sources / "a")), base=ground.base()).digest
    assert ground.collect().freed == 0
    ground.age()
    assert counts(ground.collect(), "adapters", freed=True) == {Reason.UNUSED.value: 1}
    assert digest not in ground.digests()


def test_another_servers_records_in_the_data_directory_count(ground: Ground) -> None:
    other = Ground(ground.data_dir, "other")
    other.stock()
    model = other.register(1)
    ground.register(1)
    ground.catalogue.delete(model.id)
    ground.age()
    report = ground.collect()
    assert counts(report, "adapters", freed=False) == {Reason.ELSEWHERE.value: 1}
    other.registry.close()
    other.path.write_text("no database")
    for tail in ("-wal", "-shm"):
        other.path.with_name(other.path.name + tail).unlink(missing_ok=True)
    report = ground.collect()
    assert ground.digests() == {model.digest}
    assert "no content is removed" in report.notes[0]
    assert str(other.path) in report.notes[0]


def test_versions_beyond_the_newest_go_with_their_adapters(ground: Ground) -> None:
    models = [ground.register(seed) for seed in range(6)]
    for model in models:
        ground.deploy(ground.group(model))
    report = ground.collect()
    assert counts(report, "group versions", freed=True) == {
        "older than the 3 newest of its line": 3
    }
    assert ground.digests() == {model.digest for model in models[3:]}
    deployment = ground.registry.deployments.get(DEPLOYMENT)
    assert deployment.previous_group_id is not None
    assert (
        ground.registry.groups.get(deployment.previous_group_id).members[1].model_id == models[4].id
    )


def test_what_was_created_to_stay_is_no_version(ground: Ground) -> None:
    lasting = ground.catalogue.register(Model(id=""), str(write_adapter(ground.sources / "l")))
    ground.group(lasting)
    for seed in range(1, 6):
        ground.group(ground.register(seed))
    ground.collect()
    assert ground.registry.models.get(lasting.id).state is ModelState.ACTIVE
    again = ground.catalogue.register(
        Model(id="", tags={"freeform": {**VERSIONED, "mine": "1"}}), str(ground.sources / "l")
    )
    assert again.tags["freeform"] == {"mine": "1"}
    assert lasting.digest in ground.digests()


def test_the_group_before_the_served_one_stays_however_old(ground: Ground) -> None:
    old, served = ground.register(1), ground.register(2)
    ground.deploy(ground.group(old))
    ground.deploy(ground.group(served))
    for seed in range(3, 8):
        ground.group(ground.register(seed))
    ground.collect()
    assert {old.digest, served.digest} < ground.digests()
    assert len(ground.digests()) == 5


def test_an_adapter_that_was_registered_again_waits_for_its_next_group(ground: Ground) -> None:
    first = ground.register(1)
    ground.group(first)
    for seed in range(2, 5):
        ground.group(ground.register(seed))
    again = ground.register(1)
    ground.collect()
    assert ground.registry.models.get(again.id).state is ModelState.ACTIVE
    assert ground.group(again)
    assert first.digest in ground.digests()


def test_a_dry_run_tells_the_same_and_does_nothing(ground: Ground) -> None:
    models = [ground.register(seed) for seed in range(6)]
    for model in models:
        ground.group(model)
    deleted = ground.register(9)
    ground.catalogue.delete(deleted.id)
    before = ground.digests()
    planned = ground.collect(dry_run=True)
    assert ground.digests() == before
    assert ground.registry.models.get(models[0].id).state is ModelState.ACTIVE
    done = ground.collect()
    assert planned.lines == done.lines
    assert planned.dry_run
    assert not done.dry_run
    assert ground.digests() == {model.digest for model in models[3:]}


def test_a_round_is_bounded_and_the_next_one_goes_on(ground: Ground) -> None:
    models = [ground.register(seed) for seed in range(5)]
    for model in models:
        ground.catalogue.delete(model.id)
    first = ground.collector().run(most=2)
    assert (first.unfinished, len(ground.digests())) == (True, 3)
    assert ground.collector().run(seconds=0).unfinished
    assert len(ground.digests()) == 3
    assert not ground.collector().run(most=5).unfinished
    assert ground.digests() == set()


def test_an_uploaded_base_and_the_files_go_with_their_models(ground: Ground) -> None:
    data = zipped(write_base(ground.sources / "sent"))
    model = ground.registry.models.put(Model(id=new_id(MODEL)))
    with ground.catalogue.files.receive(len(data)) as incoming:
        incoming.write(data)
        incoming.finish()
        ground.catalogue.fill(model.id, incoming, "base.zip")
    assert ground.collect().freed == 0
    path = ground.catalogue.bases.store.path(ground.registry.models.get(model.id).digest)
    ground.catalogue.delete(model.id)
    report = ground.collect()
    assert counts(report, "bases", freed=True) == {Reason.RELEASED.value: 1}
    assert not path.exists()
    assert report.stored_bytes["base"] == 0


def test_logs_notes_and_leftovers_have_a_retention_too(ground: Ground) -> None:
    logs, notes = ground.data_dir / "logs", ground.store.root / "engine"
    logs.mkdir()
    notes.mkdir()
    names = [f"engine-2026010{day}-120000-999999{day}.log" for day in range(1, 5)]
    running = f"engine-20250101-120000-{os.getpid()}.log"
    for name in (*names, running):
        (logs / name).write_text("x")
    kept = ground.register(1).digest
    gone = "sha256:" + "9" * 64
    for name in ("new.json", "old.json", "part", "young"):
        (notes / name).write_text("{}")
    (notes / "new.verified").write_text(f"{gone}\n{kept}\nsha256:12")
    for name, age in (("old.json", 40 * 86400), ("part", 7200), ("new.json", 86400)):
        os.utime(notes / name, (time.time() - age,) * 2)
    (ground.store.root / "staging" / "left").mkdir()
    settings = SETTINGS.model_copy(update={"engine_logs": 2})
    report = ground.collect(settings)
    assert sorted(path.name for path in logs.iterdir()) == [running, *names[2:]]
    assert {path.name for path in notes.iterdir()} == {"new.json", "young", "new.verified"}
    assert (notes / "new.verified").read_text().split() == [kept]
    assert list((ground.store.root / "staging").iterdir()) == []
    assert sum(line.count for line in report.lines if line.freed) == 4


def test_records_go_when_their_time_has_come(ground: Ground) -> None:
    model = ground.register(1)
    ground.catalogue.delete(model.id)
    month = RetentionConfig()
    ground.collect(month)
    assert ground.registry.models.get(model.id).state is ModelState.DELETED
    report = ground.collect(month.model_copy(update={"deleted_records": timedelta(0)}))
    assert counts(report, "deleted records", freed=True) == {"past their retention": 1}
    with pytest.raises(RecordAbsent):
        ground.registry.models.get(model.id)


def test_an_upload_that_was_never_registered_goes(ground: Ground) -> None:
    source = write_adapter(ground.sources / "sent", seed=7)
    with outgoing(str(source)) as ready:
        sent = ground.data_dir / "sent.zip"
        sent.write_bytes(b"".join(ready.parts()))
        base = ground.base()
        ground.store.add_upload(sent, ready.digest, base=base)
        assert ground.collect().freed == 0
        ground.age()
        assert counts(ground.collect(), "adapters", freed=True) == {Reason.UNUSED.value: 1}
        assert not ground.store.holds(ready.digest)


def test_content_that_comes_back_while_it_is_collected_is_there(ground: Ground) -> None:
    """Each thread has models of its own of content that all share: deleted, and there again."""
    stop = threading.Event()
    for seed in range(2):
        write_adapter(ground.sources / f"adapter-{seed}", seed=seed)

    def collect() -> int:
        rounds = removed = 0
        while not stop.is_set():
            report = ground.collect()
            removed += sum(counts(report, "adapters", freed=True).values())
            rounds += 1
        assert rounds
        return removed

    def churn(number: int) -> None:
        for step in range(12):
            id = f"ocid1.datasciencemodel.oc1..t{number}-{step}"
            model = ground.register((number + step) % 2, id)
            ground.store.verify(check_digest(model.digest))
            if step % 3:
                ground.catalogue.delete(id)
                continue
            ground.group(model, name=f"g{number}-{step}")
            ground.store.verify(check_digest(model.digest))
            for group in ground.registry.groups.list(display_name=f"g{number}-{step}").items:
                ground.catalogue.delete_group(group.id)
            ground.catalogue.delete(id)

    with ThreadPoolExecutor(7) as pool:
        collecting = pool.submit(collect)
        try:
            for done in [pool.submit(churn, number) for number in range(5)]:
                done.result()
        finally:
            stop.set()
        print(f"{collecting.result()} adapters were removed while they were added again")
    ground.collect()
    assert ground.digests() == set()


def test_models_and_code_stay_while_they_are_needed_and_go_afterwards(ground: Ground) -> None:
    models = ModelStore(ground.store.root, code=True)
    ground.catalogue.models = models

    def sent(data: bytes) -> Incoming:
        incoming = ground.catalogue.files.receive(len(data))
        incoming.write(data)
        incoming.finish()
        return incoming

    def there() -> set[str]:
        return {each.digest for each in models.contents()}

    empty = ground.registry.models.put(Model(id=new_id(MODEL)))
    model = ground.catalogue.fill(empty.id, sent(archive_of(**{"a/m.onnx": b"1"})))
    members = (GroupMember(model.id),)
    made = GroupRecord(id=new_id(GROUP), kind="HOMOGENEOUS", members=members, tags=TAGS)
    ground.registry.groups.create(made, check=True)
    zip = archive_of(**{"score.py": b""})
    ground.catalogue.attach_to_group(made.id, sent(zip))
    (code,) = there() - {model.digest}
    ground.catalogue.delete(model.id)
    report = ground.collect()
    assert counts(report, "folders of models", freed=False) == {
        Reason.NAMED.value: 1,
        Reason.RECENT.value: 1,
    }
    for digest in there():
        os.utime(models.path(digest), (0, 0))
    ground.in_use = frozenset({code})
    assert counts(ground.collect(), "folders of models", freed=False) == {
        Reason.NAMED.value: 1,
        Reason.IN_USE.value: 1,
    }
    ground.in_use = frozenset()
    ground.collect()
    assert there() == {model.digest}, "code is unpacked again from the group's artifact"
    with ground.catalogue.open(made.id)[1] as artifact:
        assert artifact.read() == zip
    ground.catalogue.delete_group(made.id)
    report = ground.collect()
    assert there() == set()
    (line,) = (line for line in report.lines if line.kind == "folders of models")
    assert (line.freed, line.count, line.bytes) == (True, 1, 1)


def test_models_of_a_file_go_with_the_last_version_that_had_them(ground: Ground) -> None:
    place = ground.sources / "m.onnx"
    kept = []
    for version in range(5):
        place.write_bytes(b"%d" % version)
        model = ground.catalogue.register(Model(id="", tags=TAGS), str(place))
        kept.append(model.digest)
        members = (GroupMember(model.id),)
        made = GroupRecord(
            id=new_id(GROUP), display_name="g", kind="HETEROGENEOUS", members=members, tags=TAGS
        )
        ground.registry.groups.create(made, check=True)
    ground.collect()
    assert {each.digest for each in ground.catalogue.models.contents()} == set(kept[-3:])
