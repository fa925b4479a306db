"""Groups and version histories: immutable, versioned, named once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stacked.errors import IllegalMove, RecordAbsent, RecordConflict, RecordStale
from stacked.registry import (
    GROUP,
    HISTORY,
    GroupMember,
    GroupState,
    HistoryState,
    ModelState,
    Query,
    Registry,
    VersionHistory,
    new_id,
)
from tests.registry.samples import BASE, adapter, deployed, group, started, stocked


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


def history(name: str = "line") -> VersionHistory:
    return VersionHistory(id=new_id(HISTORY), display_name=name)


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
    with pytest.raises(RecordConflict, match=r"group_members\.key"):
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


def test_history_counts_its_versions_and_points_to_the_latest(registry: Registry) -> None:
    line = registry.histories.create(history())
    other = registry.histories.create(history("other"))
    one = registry.groups.create(group(1, version_history_id=line.id))
    registry.groups.create(group(1, version_history_id=other.id))
    two = registry.groups.create(group(2, version_history_id=line.id, version_label="second"))
    assert (one.version, two.version) == (1, 2)
    assert registry.histories.get(line.id).latest_group_id == two.id
    assert registry.groups.create(group(1, id=one.id, version_history_id=line.id)).version == 1
    assert registry.histories.get(line.id).latest_group_id == two.id
    late = registry.groups.create(group(3))
    for _ in range(2):
        assert registry.groups.update(late.id, version_history_id=line.id).version == 3
    with pytest.raises(RecordConflict, match=line.id):
        registry.groups.update(late.id, version_history_id=other.id)
    listed = registry.groups.list(Query(descending=False), version_history_id=line.id).items
    assert [found.version for found in listed] == [1, 2, 3]
    back = registry.histories.update(line.id, latest_group_id=one.id)
    assert back.latest_group_id == one.id


def test_history_name_is_taken_until_the_history_is_deleted(registry: Registry) -> None:
    line = registry.histories.create(history())
    assert registry.histories.create(line) == line
    with pytest.raises(RecordConflict, match=line.id):
        registry.histories.create(history())
    spare = registry.histories.create(history("spare"))
    with pytest.raises(RecordConflict, match=line.id):
        registry.histories.update(spare.id, display_name="line")
    registry.histories.set_state(line.id, HistoryState.DELETING)
    registry.histories.set_state(line.id, HistoryState.DELETED)
    assert registry.histories.create(history()).id != line.id
    with pytest.raises(RecordConflict, match="is DELETED"):
        registry.groups.create(group(1, version_history_id=line.id))


def test_latest_group_of_a_history_is_one_of_its_own(registry: Registry) -> None:
    """One that is of no history joins it; one of another does not."""
    line = registry.histories.create(history())
    registry.groups.create(group(1, version_history_id=line.id))
    outside = registry.groups.create(group(1))
    changed = registry.histories.update(line.id, latest_group_id=outside.id)
    assert changed.latest_group_id == outside.id
    joined = registry.groups.get(outside.id)
    assert (joined.version_history_id, joined.version) == (line.id, 2)
    other = registry.histories.create(replace(history(), display_name="other"))
    with pytest.raises(RecordConflict, match=f"is of version history {line.id}"):
        registry.histories.update(other.id, latest_group_id=outside.id)


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
