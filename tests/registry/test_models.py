"""Models and their times, as they are stored."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from stacked.errors import IllegalMove, RecordAbsent, RecordConflict
from stacked.registry import (
    DeploymentState,
    Model,
    ModelState,
    Registry,
)
from tests.registry.samples import (
    BASE,
    adapter,
    deployed,
    group,
    started,
    stocked,
)


def test_model_is_read_as_it_was_put(registry: Registry) -> None:
    given = adapter(
        1,
        display_name="Süß ☃ '; DROP TABLE models; --",
        source="hf://someone/something",
        extra={"nested": [1, {"x": None}], "text": "\ud800"},
        tags={"freeform": {"a": "b"}},
        created_by="ocid1.user.oc1..u",
        compartment_id="ocid1.compartment.oc1..c",
        project_id="p",
        bytes=2**40,
        time_created=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    )
    stored = registry.models.put(given)
    assert stored == replace(given, time_updated=given.time_created)
    assert registry.models.get(given.id) == stored


def test_times_are_kept_in_utc_to_the_microsecond_whatever_zone_they_came_in(
    registry: Registry,
) -> None:
    moment = datetime(2026, 7, 1, 1, 0, 0, 1, timezone(timedelta(hours=5, minutes=30)))
    stored = registry.models.put(adapter(1, time_created=moment))
    assert stored.time_created == moment
    assert stored.time_created.utcoffset() == timedelta(0)


def test_put_is_idempotent_and_describes_anew(registry: Registry) -> None:
    first = registry.models.put(adapter(1))
    assert registry.models.put(adapter(1)) == first
    described = registry.models.put(adapter(1, display_name="other", source="elsewhere"))
    assert (described.display_name, described.source) == ("other", "elsewhere")
    assert described.time_created == first.time_created
    assert described.time_updated > first.time_updated


@pytest.mark.parametrize("other", [{"digest": "sha256:" + "f" * 64}, {"kind": "base"}])
def test_other_content_under_the_same_id_is_refused(
    registry: Registry, other: dict[str, str]
) -> None:
    first = registry.models.put(adapter(1))
    with pytest.raises(RecordConflict, match="other content"):
        registry.models.put(adapter(1, **other))
    assert registry.models.get(first.id) == first


def test_models_are_put_all_or_none(registry: Registry) -> None:
    registry.models.put(adapter(1))
    with pytest.raises(RecordConflict):
        registry.models.put_all([adapter(2), adapter(1, digest="sha256:" + "f" * 64)])
    with pytest.raises(RecordAbsent, match=adapter(2).id):
        registry.models.get(adapter(2).id)


def test_models_are_returned_in_the_order_they_came_repeated_or_not(registry: Registry) -> None:
    registry.models.put(adapter(3, display_name="old"))
    given = [adapter(2), adapter(3, display_name="new"), adapter(1), adapter(2)]
    stored = registry.models.put_all(given)
    assert [model.id for model in stored] == [model.id for model in given]
    assert [model.display_name for model in stored[:2]] == ["adapter 000002", "new"]
    assert [model.id for model in registry.models.list().items] == [
        adapter(number).id
        for number in (1, 2, 3)  # the newest first
    ]
    with pytest.raises(RecordConflict):
        registry.models.put_all([adapter(9), adapter(9, kind="base")])
    assert registry.models.put_all([]) == []


def test_state_moves_by_the_table_only(registry: Registry) -> None:
    id = registry.models.put(adapter(1)).id
    failed = registry.models.set_state(id, ModelState.FAILED, "its file is gone")
    assert (failed.state, failed.reason) == (ModelState.FAILED, "its file is gone")
    with pytest.raises(IllegalMove, match=r"FAILED and cannot become INACTIVE.*ACTIVE, DELETED"):
        registry.models.set_state(id, ModelState.INACTIVE)
    assert registry.models.put(adapter(1)).state is ModelState.FAILED


def test_deleted_model_stays_readable_and_comes_back_with_the_same_content(
    registry: Registry,
) -> None:
    id = registry.models.put(adapter(1)).id
    registry.models.set_state(id, ModelState.DELETED)
    assert registry.models.get(id).state is ModelState.DELETED
    assert registry.models.put(adapter(1)).state is ModelState.ACTIVE


def test_model_that_is_served_cannot_be_deleted(registry: Registry) -> None:
    stocked(registry)
    deployment = deployed(registry)
    first, second = (registry.groups.create(group(number)) for number in (1, 2))
    registry.deployments.commit(deployment.id, first.id, 1, started(registry))
    for id in (BASE, adapter(1).id):
        with pytest.raises(RecordConflict, match=deployment.id):
            registry.models.set_state(id, ModelState.DELETED)
    registry.models.set_state(adapter(0).id, ModelState.DELETED)
    registry.deployments.set_state(deployment.id, DeploymentState.UPDATING)
    registry.deployments.commit(deployment.id, second.id, 2, started(registry))
    registry.models.set_state(adapter(1).id, ModelState.DELETED)


def test_keeping_models_leaves_what_people_said_of_them(registry: Registry) -> None:
    stocked(registry)
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
