"""What is forgotten of the records, and what is never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacked.core import VERSIONED, Digest
from stacked.errors import RecordAbsent, RegistryUnusable
from stacked.registry import (
    HISTORY,
    Affected,
    DeploymentState,
    GroupMember,
    GroupState,
    Model,
    ModelState,
    Registry,
    VersionHistory,
    new_id,
)
from stacked.registry.retention import named_in
from tests.postgres import Postgres
from tests.registry.samples import adapter, base, deployed, group, started, stocked

TAGS = {"freeform": VERSIONED}
FAR = timedelta(days=1)


def versioned(number: int) -> Model:
    """An adapter that came with a group."""
    return adapter(number, tags=TAGS)


def always(digest: Digest, since: datetime) -> bool:
    return True


def drop(registry: Registry, id: str, **more: bool) -> list[str]:
    with registry.retention.sweep(**more) as sweep:
        return sweep.drop(id, always)


def forget(registry: Registry, most: int = 100) -> list[str]:
    later = datetime.now(UTC) + FAR
    with registry.retention.sweep() as sweep:
        return sweep.forget(later, later, later, most=most)


def lines(registry: Registry) -> list[tuple[str, bool]]:
    with registry.retention.sweep() as sweep:
        return [(version.id, bool(version.needed)) for version in sweep.versions()]


def named(registry: Registry) -> set[int]:
    with registry.retention.sweep() as sweep:
        return {int(digest.removeprefix("sha256:"), 16) for digest in sweep.named()}


def delete(registry: Registry, id: str) -> None:
    registry.groups.set_state(id, GroupState.DELETING)
    registry.groups.set_state(id, GroupState.DELETED)


def test_versions_are_the_newest_first_and_what_is_deployed_is_needed(registry: Registry) -> None:
    stocked(registry)
    made = [registry.groups.create(group(0, display_name="g", tags=TAGS)).id for _ in range(4)]
    deployment = deployed(registry, configuration={"group": made[2]})
    for generation, id in enumerate(made[:2], start=1):
        if generation > 1:
            registry.deployments.set_state(deployment.id, DeploymentState.UPDATING)
        registry.deployments.commit(deployment.id, id, generation, started(registry))
    assert lines(registry) == [(made[3], False), *((id, True) for id in made[2::-1])]
    with registry.retention.sweep() as sweep:
        assert {version.line for version in sweep.versions()} == {"name:g"}
    alone = registry.groups.create(group(0, display_name="g")).id
    with registry.retention.sweep() as sweep:
        assert sweep.versions()[0].line == alone, "its creator has not tagged it"


def test_work_in_progress_and_a_historys_latest_are_needed(registry: Registry) -> None:
    stocked(registry)
    history = registry.histories.create(VersionHistory(id=new_id(HISTORY)))
    one, two = (
        registry.groups.create(group(0, version_history_id=history.id)).id for _ in range(2)
    )
    assert lines(registry) == [(two, True), (one, False)]
    work = registry.work_requests.open("X", [Affected("RELATED", "model-group", one)])
    assert lines(registry) == [(two, True), (one, True)]
    registry.work_requests.advance(work.id, 1)
    registry.work_requests.succeed(work.id)
    assert lines(registry) == [(two, True), (one, False)]


def test_the_models_that_came_with_a_version_go_with_it(registry: Registry) -> None:
    stocked(registry)
    mine, shared = (registry.models.put(versioned(number)).id for number in (20, 21))
    own = adapter(22).id
    registry.models.put(adapter(22))

    def of(*ids: str) -> str:
        members = tuple(GroupMember(id) for id in (base().id, *ids))
        return registry.groups.create(group(members=members)).id

    old, new = of(mine, shared, own), of(shared)
    assert drop(registry, old, dry_run=True) == [mine]
    assert registry.groups.get(old).state is GroupState.ACTIVE
    assert drop(registry, old) == [mine]
    assert registry.groups.get(old).state is GroupState.DELETED
    assert registry.models.get(mine).state is ModelState.DELETED
    assert {20, 21} & named(registry) == {21}
    with registry.retention.sweep() as sweep:
        assert sweep.released() == {versioned(20).digest}
        assert sweep.drop(new, lambda digest, since: False) == [], "somebody has used it since"
    assert registry.models.get(shared).state is ModelState.ACTIVE
    assert registry.models.get(own).state is ModelState.ACTIVE


def test_a_group_whose_id_follows_from_its_content_comes_back(registry: Registry) -> None:
    stocked(registry)
    declared = group(1)
    registry.groups.create(declared)
    drop(registry, declared.id)
    assert registry.groups.create(declared).state is GroupState.ACTIVE
    drop(registry, declared.id)
    registry.models.set_state(adapter(1).id, ModelState.DELETED)
    with pytest.raises(RecordAbsent):
        registry.groups.create(declared)


def test_a_deleted_model_is_named_while_a_group_has_it(registry: Registry) -> None:
    stocked(registry)
    id = registry.groups.create(group(1)).id
    registry.models.set_state(adapter(1).id, ModelState.DELETED)
    registry.models.set_state(adapter(2).id, ModelState.DELETED)
    assert named(registry) == {0, 1, 3}
    delete(registry, id)
    assert named(registry) == {0, 3}


def test_what_was_deleted_is_forgotten_unless_another_record_refers_to_it(
    registry: Registry,
) -> None:
    stocked(registry)
    old = registry.groups.create(group(1)).id
    clone = registry.groups.create(group(2, source_group_id=old, create_type="CLONE")).id
    other = registry.groups.create(group(1)).id
    registry.models.set_state(adapter(1).id, ModelState.DELETED)
    delete(registry, old)
    # A chain of clones is not kept for ever: each forgets what it was made from.
    assert forget(registry) == ["model_groups"], "the model is in another group"
    assert registry.groups.get(clone).source_group_id is None
    delete(registry, other)
    assert sorted(forget(registry)) == ["model_groups", "models"]
    for read, id in ((registry.groups.get, old), (registry.models.get, adapter(1).id)):
        with pytest.raises(RecordAbsent):
            read(id)
    assert registry.models.get(adapter(2).id).state is ModelState.ACTIVE


def test_finished_work_is_forgotten_with_its_logs_but_for_that_of_a_commit(
    registry: Registry,
) -> None:
    stocked(registry)
    running, failed, committed = (started(registry) for _ in range(3))
    registry.work_requests.add_error(failed, "Code", "why")
    registry.work_requests.fail(failed, "Code", "why")
    deployment = deployed(registry)
    id = registry.groups.create(group(1)).id
    registry.deployments.commit(deployment.id, id, 1, committed)
    registry.work_requests.succeed(committed)
    assert forget(registry) == ["work_requests"]
    assert [each.id for each in registry.work_requests.list().items] == [committed, running]
    registry.deployments.set_state(deployment.id, DeploymentState.DELETING)
    registry.deployments.set_state(deployment.id, DeploymentState.DELETED)
    assert sorted(forget(registry)) == ["deployments", "work_requests"]
    assert [each.id for each in registry.work_requests.list().items] == [running]


def test_a_sweep_removes_so_many_and_what_is_younger_stays(registry: Registry) -> None:
    for _ in range(5):
        registry.work_requests.succeed(started(registry))
    earlier = datetime.now(UTC) - FAR
    with registry.retention.sweep() as sweep:
        assert sweep.forget(earlier, earlier, earlier, most=100) == []
    assert len(forget(registry, most=3)) == 3
    assert len(forget(registry, most=3)) == 2


def test_a_deleted_model_stays_while_its_content_must_go_first(registry: Registry) -> None:
    stocked(registry)
    later = datetime.now(UTC) + FAR
    registry.models.set_state(adapter(1).id, ModelState.DELETED)
    with registry.retention.sweep() as sweep:
        needed = [Digest(adapter(1).digest)]
        assert sweep.forget(later, later, later, most=9, needed=needed) == []
    assert forget(registry) == ["models"]


def test_another_process_reads_what_is_named_without_writing(path: Path, tmp_path: Path) -> None:
    with Registry(path) as registry:
        stocked(registry, 2)
    assert named_in(path) == {base().digest, adapter(0).digest, adapter(1).digest}
    (tmp_path / "other").write_text("no database")
    for other in ("other", "absent"):
        with pytest.raises(RegistryUnusable):
            named_in(tmp_path / other)
    assert not (tmp_path / "absent").exists()


def test_registries_of_one_database_read_what_the_others_name(postgres: Postgres) -> None:
    with Registry(postgres.shared()) as one, Registry(postgres.shared()) as other:
        one.models.put(base())
        rare = adapter(0xF00D)
        other.models.put_all([base(), rare])
        assert rare.digest in one.retention.named_by_others()
        assert rare.digest not in other.retention.named_by_others()


def test_registry_in_a_file_is_alone(path: Path) -> None:
    with Registry(path) as registry:
        stocked(registry)
        assert registry.retention.named_by_others() == frozenset()
