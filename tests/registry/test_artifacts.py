"""Content that comes later, the files it came as, and what deletion leaves of them."""

from __future__ import annotations

import pytest

from stacked.errors import RecordAbsent, RecordConflict, RecordStale
from stacked.registry import (
    MODEL,
    Content,
    GroupMember,
    GroupState,
    Model,
    ModelState,
    Registry,
    new_id,
)
from tests.registry.samples import (
    BASE,
    adapter,
    artifact,
    group,
    stocked,
)

CONTENT = Content(kind="adapter", digest="sha256:new", bytes=5, rank=4, base_model_id=BASE)


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


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
