"""Groups: immutable, checked, with their members in order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stacked.errors import GroupInvalid, IllegalMove, RecordAbsent, RecordConflict, RecordStale
from stacked.registry import (
    GROUP,
    GroupMember,
    GroupState,
    ModelState,
    Query,
    Registry,
    new_id,
)
from tests.registry.samples import (
    BASE,
    adapter,
    artifact,
    deployed,
    group,
    started,
    stocked,
)


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


def test_group_is_read_as_it_was_created(registry: Registry) -> None:
    members = (
        GroupMember(BASE, "base"),
        GroupMember(adapter(2).id, "z"),
        GroupMember(adapter(1).id),
        GroupMember(adapter(3).id),
        GroupMember(adapter(2).id, "a"),  # two keys of one model
    )
    given = group(members=members, custom_metadata=({"key": "k", "value": "v"},), description="d")
    stored = registry.groups.create(given)
    assert stored == replace(given, time_updated=given.time_created)
    assert registry.groups.get(given.id) == stored


def test_group_of_500_members_keeps_their_order(registry: Registry) -> None:
    registry.models.put_all([adapter(number) for number in range(500)])
    numbers = [number * 7 % 500 for number in range(500)]
    given = registry.groups.create(group(*numbers))
    assert [m.key for m in registry.groups.get(given.id).members[1:]] == [f"k{n}" for n in numbers]


def test_creating_again_changes_nothing_and_other_content_is_refused(registry: Registry) -> None:
    given = group(1, 2, custom_metadata=({"key": "k", "value": [1]},))
    stored = registry.groups.create(given)
    assert registry.groups.create(given) == stored
    others = [
        replace(given, members=given.members[:-1]),
        replace(given, members=(given.members[1], given.members[0], given.members[2])),
        replace(given, base_model_id=adapter(3).id),
        replace(given, custom_metadata=()),
        replace(given, create_type="CLONE"),
    ]
    for other in others:
        with pytest.raises(RecordConflict, match="groups do not change"):
            registry.groups.create(other)
    assert registry.groups.get(given.id) == stored


def test_group_of_a_model_that_is_absent_or_deleted_is_refused(registry: Registry) -> None:
    with pytest.raises(RecordAbsent, match=f"{adapter(77).id} and 1 more"):
        registry.groups.create(group(1, 77, 78))
    registry.models.set_state(adapter(2).id, ModelState.DELETED)
    with pytest.raises(RecordAbsent, match=adapter(2).id):
        registry.groups.create(group(2))
    assert registry.groups.list().items == ()


def test_key_that_is_used_twice_is_refused_by_the_tables_too(registry: Registry) -> None:
    members = (GroupMember(adapter(1).id, "k"), GroupMember(adapter(2).id, "k"))
    with pytest.raises(RecordConflict, match=r"group_members[._].*key"):
        registry.groups.create(group(members=members))
    assert registry.groups.list().items == ()


def test_clone_names_its_source(registry: Registry) -> None:
    source = registry.groups.create(group(1, 2))
    clone = replace(
        source,
        id=new_id(GROUP),
        members=(*source.members[:-1], GroupMember(adapter(3).id, "k3")),
        create_type="CLONE",
        source_group_id=source.id,
    )
    stored = registry.groups.create(clone)
    assert stored.source_group_id == source.id
    assert registry.groups.get(source.id) == source
    with pytest.raises(RecordAbsent):
        registry.groups.create(replace(clone, id=new_id(GROUP), source_group_id=new_id(GROUP)))


def test_names_and_tags_change_and_a_stale_writer_is_refused(registry: Registry) -> None:
    read = registry.groups.create(group(1))
    changed = registry.groups.update(read.id, expect=read, display_name="new", tags={"a": {"b": 1}})
    assert (changed.display_name, changed.tags) == ("new", {"a": {"b": 1}})
    assert changed.members == read.members
    assert changed.time_updated > read.time_updated
    with pytest.raises(RecordStale):
        registry.groups.update(read.id, expect=read, display_name="newer")
    assert registry.groups.get(read.id) == changed


def test_deleted_group_stays_readable(registry: Registry) -> None:
    id = registry.groups.create(group(1)).id
    with pytest.raises(IllegalMove):
        registry.groups.set_state(id, GroupState.DELETED)
    registry.groups.set_state(id, GroupState.DELETING)
    registry.groups.set_state(id, GroupState.DELETED)
    assert registry.groups.get(id).state is GroupState.DELETED


def test_group_that_is_served_cannot_be_switched_off(registry: Registry) -> None:
    made = registry.groups.create(group(1))
    deployment = deployed(registry)
    registry.deployments.commit(deployment.id, made.id, 1, started(registry))
    for state in (GroupState.INACTIVE, GroupState.DELETING):
        with pytest.raises(RecordConflict, match=deployment.id):
            registry.groups.set_state(made.id, state)


def test_models_of_a_group_are_listed_with_their_keys(registry: Registry) -> None:
    made = registry.groups.create(group(2, 1))
    by_name = registry.groups.list_models(made.id, Query(sort="display_name")).items
    assert [found.member.key for found in by_name] == ["k1", "k2", "base"]
    only = registry.groups.list_models(made.id, key="k2").items
    assert [found.model for found in only] == [registry.models.get(adapter(2).id)]
    with pytest.raises(RecordAbsent):
        registry.groups.list_models(new_id(GROUP))


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
