"""Records of the catalogue: content that comes later, artifacts, what deletion leaves."""

from __future__ import annotations

import pytest

from stacked.errors import GroupInvalid, RecordAbsent, RecordConflict, RecordStale
from stacked.registry import (
    GROUP,
    HISTORY,
    MODEL,
    Artifact,
    Content,
    GroupMember,
    GroupState,
    Model,
    ModelState,
    Query,
    Registry,
    VersionHistory,
    new_id,
)
from tests.registry.samples import BASE, adapter, group, stocked

CONTENT = Content(kind="adapter", digest="sha256:new", bytes=5, rank=4, base_model_id=BASE)


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


def artifact(owner: str, sha256: str = "1", part: str = "") -> Artifact:
    return Artifact(owner_id=owner, part=part, sha256=sha256, md5="m", bytes=3, name="a.zip")


def empty(registry: Registry) -> Model:
    return registry.models.put(Model(id=new_id(MODEL), display_name="empty"))


def filled(registry: Registry) -> Model:
    id = empty(registry).id
    return registry.models.fill(id, CONTENT, artifact(id))


def test_content_comes_with_the_file_it_came_as(registry: Registry) -> None:
    before = empty(registry)
    assert (before.kind, before.digest) == ("", "")
    after = registry.models.fill(before.id, CONTENT, artifact(before.id))
    assert (after.kind, after.digest, after.rank) == ("adapter", "sha256:new", 4)
    assert (after.base_model_id, after.display_name) == (BASE, "empty")
    assert after.time_updated > before.time_updated
    assert registry.artifacts.get(before.id).sha256 == "1"
    assert registry.artifacts.files() == {"1"}


def test_a_stale_writer_changes_nothing(registry: Registry) -> None:
    read = empty(registry)
    registry.models.update(read.id, description="newer")
    with pytest.raises(RecordStale):
        registry.models.fill(read.id, CONTENT, artifact(read.id), read)
    with pytest.raises(RecordStale):
        registry.models.set_state(read.id, ModelState.DELETED, expect=read)
    with pytest.raises(RecordStale):
        registry.models.attach(artifact(read.id, part="p"), read, new=True)
    assert registry.models.get(read.id).digest == ""
    assert registry.artifacts.files() == frozenset()


def test_content_changes_until_a_group_has_the_model(registry: Registry) -> None:
    model = filled(registry)
    other = Content(kind="adapter", digest="sha256:other", bytes=1)
    registry.models.fill(model.id, other, artifact(model.id, "2"))
    assert registry.artifacts.files() == {"2"}
    members = (*group(1).members, GroupMember(model.id, "new"))
    made = registry.groups.create(group(members=members))
    with pytest.raises(RecordConflict, match=made.id):
        registry.models.fill(model.id, CONTENT, artifact(model.id, "3"))
    registry.models.fill(model.id, other, artifact(model.id, "4"))  # the same in another zip
    registry.groups.set_state(made.id, GroupState.DELETING)
    registry.groups.set_state(made.id, GroupState.DELETED)
    assert registry.models.fill(model.id, CONTENT, artifact(model.id, "5")).digest == "sha256:new"


def test_deletion_leaves_the_record_and_no_file(registry: Registry) -> None:
    model = filled(registry)
    registry.models.attach(artifact(model.id, "2", "card"), new=True)
    gone = registry.models.set_state(model.id, ModelState.DELETED)
    assert (gone.state, gone.digest) == (ModelState.DELETED, "sha256:new")
    assert registry.artifacts.files() == frozenset()
    for write in (
        lambda: registry.models.set_state(model.id, ModelState.DELETED),
        lambda: registry.models.update(model.id, description="x"),
        lambda: registry.models.fill(model.id, CONTENT, artifact(model.id)),
        lambda: registry.models.attach(artifact(model.id, part="p"), new=True),
    ):
        with pytest.raises(RecordAbsent, match="is DELETED"):
            write()


def test_a_part_is_new_once_and_then_replaced(registry: Registry) -> None:
    id = empty(registry).id
    with pytest.raises(RecordAbsent):
        registry.models.attach(artifact(id, "1", "card"), new=False)
    registry.models.attach(artifact(id, "1", "card"), new=True)
    with pytest.raises(RecordConflict, match="card"):
        registry.models.attach(artifact(id, "2", "card"), new=True)
    registry.models.attach(artifact(id, "2", "card"), new=False)
    assert [found.sha256 for found in registry.artifacts.of(id)] == ["2"]
    registry.models.detach(id, "card")
    with pytest.raises(RecordAbsent):
        registry.models.detach(id, "card")


def test_a_file_of_two_owners_is_needed_by_each(registry: Registry) -> None:
    one, two = empty(registry).id, empty(registry).id
    for id in (one, two):
        registry.models.fill(id, CONTENT, artifact(id))
    registry.models.set_state(one, ModelState.DELETED)
    assert registry.artifacts.needs("1")
    registry.models.set_state(two, ModelState.DELETED)
    assert not registry.artifacts.needs("1")


def test_a_file_that_was_made_here_does_not_change_its_owner(registry: Registry) -> None:
    before = registry.models.get(adapter(1).id)
    registry.artifacts.put(artifact(before.id))
    assert registry.models.get(before.id) == before


def test_keeping_models_leaves_what_people_said_of_them(registry: Registry) -> None:
    id = adapter(1).id
    said = registry.models.update(id, display_name="mine", tags={"freeform": {"a": "b"}})
    again = adapter(1, base_model_id=BASE, display_name="declared")
    (kept,) = registry.models.put_all([again], describe=False)
    assert (kept.display_name, kept.tags) == ("mine", said.tags)
    assert kept.base_model_id == BASE
    registry.models.set_state(id, ModelState.DELETED)
    assert registry.models.put_all([again], describe=False)[0].state is ModelState.ACTIVE
    moved = Model(id=BASE, kind="base", digest="sha256:" + "0" * 64, source="/new/place")
    assert registry.models.put_all([moved], describe=False)[0].source == "/new/place"
    with pytest.raises(RecordConflict):
        registry.models.put_all([adapter(1, digest="sha256:" + "f" * 64)], describe=False)


def test_a_group_is_checked_in_the_transaction_that_makes_it(registry: Registry) -> None:
    with pytest.raises(GroupInvalid, match="not checked"):
        registry.groups.create(group(1), check=True)
    registry.models.put_all([adapter(1, base_model_id=BASE)], describe=False)
    made = registry.groups.create(group(1), check=True)
    registry.models.set_state(adapter(1).id, ModelState.INACTIVE)
    assert registry.groups.create(made, check=True) == made, "a repetition is answered"
    with pytest.raises(RecordConflict, match="INACTIVE"):
        registry.groups.create(group(1), check=True)
    assert len(registry.groups.list().items) == 1


def test_groups_of_other_kinds_have_no_base(registry: Registry) -> None:
    made = registry.groups.create(group(1, kind="HOMOGENEOUS", base_model_id=None))
    assert registry.groups.get(made.id).base_model_id is None
    assert [row.id for row in registry.groups.list(kind="HOMOGENEOUS").items] == [made.id]
    registry.groups.attach(artifact(made.id))
    registry.groups.attach(artifact(made.id))
    with pytest.raises(RecordConflict, match="do not change"):
        registry.groups.attach(artifact(made.id, "2"))
    stacked = registry.groups.create(group(1))
    with pytest.raises(RecordConflict, match="STACKED"):
        registry.groups.attach(artifact(stacked.id))


def test_the_name_of_its_history_is_read_with_a_group(registry: Registry) -> None:
    line = registry.histories.create(VersionHistory(id=new_id(HISTORY), display_name="one"))
    made = registry.groups.create(group(1, version_history_id=line.id))
    registry.histories.update(line.id, display_name="two")
    assert registry.groups.get(made.id).version_history_name == "two"
    (row,) = registry.groups.list(Query(limit=1)).items
    assert row.version_history_name == "two"


def test_a_history_begins_with_a_group_or_not_at_all(registry: Registry) -> None:
    made = registry.groups.create(group(1))
    given = VersionHistory(id=new_id(HISTORY), display_name="a", latest_group_id=made.id)
    line = registry.histories.create(given)
    assert (line.latest_group_id, registry.groups.get(made.id).version) == (made.id, 1)
    with pytest.raises(RecordConflict):
        registry.histories.create(
            VersionHistory(id=new_id(HISTORY), display_name="b", latest_group_id=made.id)
        )
    none = VersionHistory(id=new_id(HISTORY), display_name="c", latest_group_id=new_id(GROUP))
    with pytest.raises(RecordAbsent):
        registry.histories.create(none)
    assert len(registry.histories.list().items) == 1
