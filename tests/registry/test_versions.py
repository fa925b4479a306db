"""Version histories and version sets: names under which groups and models are numbered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import delete

from stacked.errors import RecordAbsent, RecordConflict
from stacked.registry import (
    GROUP,
    HISTORY,
    VERSION_SET,
    GroupState,
    HistoryState,
    ModelState,
    ModelVersionSet,
    Query,
    Registry,
    VersionHistory,
    new_id,
)
from stacked.registry.schema import groups
from tests.registry.samples import (
    adapter,
    group,
    stocked,
)


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


def history(name: str = "line") -> VersionHistory:
    return VersionHistory(id=new_id(HISTORY), display_name=name)


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


def test_version_of_a_group_that_is_gone_is_not_given_again(registry: Registry) -> None:
    line = registry.histories.create(VersionHistory(id=new_id(HISTORY)))
    one, two = (registry.groups.create(group(1, version_history_id=line.id)) for _ in range(2))
    for state in (GroupState.DELETING, GroupState.DELETED):
        registry.groups.set_state(two.id, state)
    assert registry.histories.get(line.id).latest_group_id == one.id
    with registry._database.write() as connection:
        connection.execute(delete(groups).where(groups.c.id == two.id))
    assert registry.groups.create(group(1, version_history_id=line.id)).version == 3


def version_set(name: str = "line") -> ModelVersionSet:
    return ModelVersionSet(id=new_id(VERSION_SET), display_name=name)


def test_set_counts_its_models_and_is_deleted_after_them(registry: Registry) -> None:
    line = registry.version_sets.create(version_set())
    assert registry.version_sets.create(line) == line
    for at, number in enumerate((2, 0), start=1):
        joined = registry.models.update(adapter(number).id, version_set_id=line.id)
        assert (joined.version, joined.version_set_name) == (at, "line")
    assert registry.models.update(adapter(2).id, version_set_id=line.id).version == 1
    assert registry.version_sets.get(line.id) == line, "what joins it does not change it"
    assert registry.version_sets.models_of(line.id) == [adapter(2).id, adapter(0).id]
    for number in (2, 0):
        with pytest.raises(RecordConflict, match="is not deleted"):
            registry.version_sets.delete(line.id)
        registry.models.set_state(adapter(number).id, ModelState.DELETED)
    assert registry.version_sets.delete(line.id).state is HistoryState.DELETED
    with pytest.raises(RecordAbsent, match="is DELETED"):
        registry.models.update(adapter(1).id, version_set_id=line.id)


def test_model_is_of_one_set(registry: Registry) -> None:
    one, two = (registry.version_sets.create(version_set(name)) for name in ("one", "two"))
    with pytest.raises(RecordConflict, match=one.id):
        registry.version_sets.create(version_set("one"))
    registry.models.put(adapter(9, version_set_id=one.id))
    with pytest.raises(RecordConflict, match=f"is of model version set {one.id}"):
        registry.models.update(adapter(9).id, version_set_id=two.id)
