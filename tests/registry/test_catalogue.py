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
    return registry.put_model(Model(id=new_id(MODEL), display_name="empty"))


def filled(registry: Registry) -> Model:
    id = empty(registry).id
    return registry.fill_model(id, CONTENT, artifact(id))


def test_content_comes_with_the_file_it_came_as(registry: Registry) -> None:
    before = empty(registry)
    assert (before.kind, before.digest) == ("", "")
    after = registry.fill_model(before.id, CONTENT, artifact(before.id))
    assert (after.kind, after.digest, after.rank) == ("adapter", "sha256:new", 4)
    assert (after.base_model_id, after.display_name) == (BASE, "empty")
    assert after.time_updated > before.time_updated
    assert registry.get_artifact(before.id).sha256 == "1"
    assert registry.artifact_files() == {"1"}


def test_a_stale_writer_changes_nothing(registry: Registry) -> None:
    read = empty(registry)
    registry.update_model(read.id, description="newer")
    with pytest.raises(RecordStale):
        registry.fill_model(read.id, CONTENT, artifact(read.id), read)
    with pytest.raises(RecordStale):
        registry.set_model_state(read.id, ModelState.DELETED, expect=read)
    with pytest.raises(RecordStale):
        registry.attach_artifact(artifact(read.id, part="p"), read, new=True)
    assert registry.get_model(read.id).digest == ""
    assert registry.artifact_files() == frozenset()


def test_content_changes_until_a_group_has_the_model(registry: Registry) -> None:
    model = filled(registry)
    other = Content(kind="adapter", digest="sha256:other", bytes=1)
    registry.fill_model(model.id, other, artifact(model.id, "2"))
    assert registry.artifact_files() == {"2"}
    members = (*group(1).members, GroupMember(model.id, "new"))
    made = registry.create_group(group(members=members))
    with pytest.raises(RecordConflict, match=made.id):
        registry.fill_model(model.id, CONTENT, artifact(model.id, "3"))
    registry.fill_model(model.id, other, artifact(model.id, "4"))  # the same in another zip
    registry.set_group_state(made.id, GroupState.DELETING)
    registry.set_group_state(made.id, GroupState.DELETED)
    assert registry.fill_model(model.id, CONTENT, artifact(model.id, "5")).digest == "sha256:new"


def test_deletion_leaves_the_record_and_no_file(registry: Registry) -> None:
    model = filled(registry)
    registry.attach_artifact(artifact(model.id, "2", "card"), new=True)
    gone = registry.set_model_state(model.id, ModelState.DELETED)
    assert (gone.state, gone.digest) == (ModelState.DELETED, "sha256:new")
    assert registry.artifact_files() == frozenset()
    for write in (
        lambda: registry.set_model_state(model.id, ModelState.DELETED),
        lambda: registry.update_model(model.id, description="x"),
        lambda: registry.fill_model(model.id, CONTENT, artifact(model.id)),
        lambda: registry.attach_artifact(artifact(model.id, part="p"), new=True),
    ):
        with pytest.raises(RecordAbsent, match="is deleted"):
            write()


def test_a_part_is_new_once_and_then_replaced(registry: Registry) -> None:
    id = empty(registry).id
    with pytest.raises(RecordAbsent):
        registry.attach_artifact(artifact(id, "1", "card"), new=False)
    registry.attach_artifact(artifact(id, "1", "card"), new=True)
    with pytest.raises(RecordConflict, match="card"):
        registry.attach_artifact(artifact(id, "2", "card"), new=True)
    registry.attach_artifact(artifact(id, "2", "card"), new=False)
    assert [found.sha256 for found in registry.artifacts_of(id)] == ["2"]
    registry.detach_artifact(id, "card")
    with pytest.raises(RecordAbsent):
        registry.detach_artifact(id, "card")


def test_a_file_of_two_owners_is_needed_by_each(registry: Registry) -> None:
    one, two = empty(registry).id, empty(registry).id
    for id in (one, two):
        registry.fill_model(id, CONTENT, artifact(id))
    registry.set_model_state(one, ModelState.DELETED)
    assert registry.needs_file("1")
    registry.set_model_state(two, ModelState.DELETED)
    assert not registry.needs_file("1")


def test_a_file_that_was_made_here_does_not_change_its_owner(registry: Registry) -> None:
    before = registry.get_model(adapter(1).id)
    registry.remember_artifact(artifact(before.id))
    assert registry.get_model(before.id) == before


def test_keeping_models_leaves_what_people_said_of_them(registry: Registry) -> None:
    id = adapter(1).id
    said = registry.update_model(id, display_name="mine", tags={"freeform": {"a": "b"}})
    again = adapter(1, base_model_id=BASE, display_name="declared")
    (kept,) = registry.keep_models([again])
    assert (kept.display_name, kept.tags) == ("mine", said.tags)
    assert kept.base_model_id == BASE
    registry.set_model_state(id, ModelState.DELETED)
    assert registry.keep_models([again])[0].state is ModelState.ACTIVE
    moved = Model(id=BASE, kind="base", digest="sha256:" + "0" * 64, source="/new/place")
    assert registry.keep_models([moved])[0].source == "/new/place"
    with pytest.raises(RecordConflict):
        registry.keep_models([adapter(1, digest="sha256:" + "f" * 64)])


def test_a_group_is_checked_in_the_transaction_that_makes_it(registry: Registry) -> None:
    with pytest.raises(GroupInvalid, match="not checked"):
        registry.create_group(group(1), check=True)
    registry.keep_models([adapter(1, base_model_id=BASE)])
    made = registry.create_group(group(1), check=True)
    registry.set_model_state(adapter(1).id, ModelState.INACTIVE)
    assert registry.create_group(made, check=True) == made, "a repetition is answered"
    with pytest.raises(RecordConflict, match="INACTIVE"):
        registry.create_group(group(1), check=True)
    assert len(registry.list_groups().items) == 1


def test_groups_of_other_kinds_have_no_base(registry: Registry) -> None:
    made = registry.create_group(group(1, kind="HOMOGENEOUS", base_model_id=None))
    assert registry.get_group(made.id).base_model_id is None
    assert [row.id for row in registry.list_groups(kind="HOMOGENEOUS").items] == [made.id]
    registry.attach_group_artifact(artifact(made.id))
    registry.attach_group_artifact(artifact(made.id))
    with pytest.raises(RecordConflict, match="do not change"):
        registry.attach_group_artifact(artifact(made.id, "2"))
    stacked = registry.create_group(group(1))
    with pytest.raises(RecordConflict, match="STACKED"):
        registry.attach_group_artifact(artifact(stacked.id))


def test_the_name_of_its_history_is_read_with_a_group(registry: Registry) -> None:
    line = registry.create_version_history(VersionHistory(id=new_id(HISTORY), display_name="one"))
    made = registry.create_group(group(1, version_history_id=line.id))
    registry.update_version_history(line.id, display_name="two")
    assert registry.get_group(made.id).version_history_name == "two"
    (row,) = registry.list_groups(Query(limit=1)).items
    assert row.version_history_name == "two"


def test_a_history_begins_with_a_group_or_not_at_all(registry: Registry) -> None:
    made = registry.create_group(group(1))
    given = VersionHistory(id=new_id(HISTORY), display_name="a", latest_group_id=made.id)
    line = registry.create_version_history(given)
    assert (line.latest_group_id, registry.get_group(made.id).version) == (made.id, 1)
    with pytest.raises(RecordConflict):
        registry.create_version_history(
            VersionHistory(id=new_id(HISTORY), display_name="b", latest_group_id=made.id)
        )
    none = VersionHistory(id=new_id(HISTORY), display_name="c", latest_group_id=new_id(GROUP))
    with pytest.raises(RecordAbsent):
        registry.create_version_history(none)
    assert len(registry.list_version_histories().items) == 1
