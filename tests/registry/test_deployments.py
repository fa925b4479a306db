"""Deployments: the commit of a group, and member states."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stacked.errors import IllegalMove, RecordAbsent, RecordConflict, RecordStale
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    DeployedMember,
    Deployment,
    DeploymentState,
    GroupRecord,
    GroupState,
    MemberState,
    Query,
    Registry,
    new_id,
)
from tests.registry.samples import (
    BASE,
    adapter,
    deployed,
    group,
    started,
    stocked,
    updated,
)


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


@pytest.fixture
def made(registry: Registry) -> list[GroupRecord]:
    return [registry.groups.create(group(number)) for number in range(4)]


def test_deployment_begins_without_a_group(registry: Registry, made: list[GroupRecord]) -> None:
    given = Deployment(id=new_id(DEPLOYMENT), display_name="d", configuration={"base": BASE})
    stored = registry.deployments.create(given)
    assert stored == replace(given, time_updated=given.time_created)
    assert registry.deployments.create(given) == stored
    with pytest.raises(RecordConflict, match="configuration"):
        registry.deployments.create(replace(given, configuration={}))
    with pytest.raises(ValueError, match="without a group"):
        registry.deployments.create(Deployment(id=new_id(DEPLOYMENT), group_id=made[0].id))


def test_commit_switches_and_remembers_the_group_before(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id = deployed(registry).id
    one = updated(registry, id, made[0], 1)
    assert (one.state, one.group_id, one.previous_group_id) == (
        DeploymentState.ACTIVE,
        made[0].id,
        None,
    )
    two = updated(registry, id, made[1], 2)
    assert (two.group_id, two.generation, two.previous_group_id) == (made[1].id, 2, made[0].id)
    again = updated(registry, id, made[1], 3)  # the same group anew: there is still a way back
    assert (again.group_id, again.previous_group_id) == (made[1].id, made[0].id)
    back = updated(registry, id, made[0], 4)
    assert (back.group_id, back.previous_group_id) == (made[0].id, made[1].id)


def test_commit_that_is_asked_for_again_is_answered_the_same(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id, request = deployed(registry).id, started(registry)
    first = registry.deployments.commit(id, made[0].id, 1, request)
    assert registry.deployments.commit(id, made[0].id, 1, request) == first
    assert len(registry.work_requests.list_logs(request).items) == 1


def test_commit_that_cannot_be_changes_nothing(registry: Registry, made: list[GroupRecord]) -> None:
    id, request = deployed(registry).id, started(registry)
    registry.groups.set_state(made[2].id, GroupState.INACTIVE)
    before = updated(registry, id, made[0], 5)
    accepted = registry.work_requests.open("MODEL_DEPLOYMENT_UPDATE").id
    refused = [
        (made[1].id, 6, request, IllegalMove),  # ACTIVE: nobody said that it is updating
        (made[1].id, 5, request, RecordConflict),
        (made[2].id, 6, request, RecordConflict),
        (made[1].id, 6, accepted, RecordConflict),
        (made[1].id, 6, new_id(GROUP), RecordAbsent),
        (new_id(GROUP), 6, request, RecordAbsent),
    ]
    for group_id, generation, work, error in refused:
        with pytest.raises(error):
            registry.deployments.commit(id, group_id, generation, work)
    assert registry.deployments.get(id) == before
    assert registry.work_requests.list_logs(request).items == ()


def test_second_update_cannot_begin_while_one_runs(registry: Registry) -> None:
    id = deployed(registry).id
    registry.deployments.set_state(id, DeploymentState.ACTIVE)
    registry.deployments.set_state(id, DeploymentState.UPDATING, "to group 2")
    with pytest.raises(IllegalMove, match="UPDATING"):
        registry.deployments.set_state(id, DeploymentState.UPDATING)
    assert registry.deployments.get(id).reason == "to group 2"


def states(*of: MemberState) -> list[DeployedMember]:
    ids = [BASE, *(adapter(number).id for number in range(4))]
    return [
        DeployedMember(model_id=ids[at], key=f"k{at}", state=state, reason=f"because {at}")
        for at, state in enumerate(of)
    ]


def test_member_states_are_those_of_the_committed_group(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id = deployed(registry).id
    good, bad = MemberState.SUCCESS, MemberState.FAILED
    assert registry.deployments.list_members(id).items == ()
    registry.deployments.put_members(id, made[0].id, states(good, good))
    updated(registry, id, made[0], 1)
    registry.deployments.put_members(id, made[1].id, states(good, bad, good))
    listed = registry.deployments.list_members(id, Query(sort="display_name")).items
    assert [(s.state, s.display_name) for s in listed] == [(good, "adapter 000000"), (good, "base")]
    tried = registry.deployments.list_members(id, group_id=made[1].id, state=bad).items
    assert [(s.model_id, s.key, s.reason) for s in tried] == [(adapter(0).id, "k1", "because 1")]
    assert [s.key for s in registry.deployments.list_members(id, model_id=BASE).items] == ["k0"]
    assert registry.deployments.list_members(id, display_name="nobody").items == ()


def test_member_states_are_replaced_under_a_reader_who_is_between_two_pages(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id = deployed(registry).id
    good, bad = MemberState.SUCCESS, MemberState.FAILED
    updated(registry, id, made[0], 1)
    registry.deployments.put_members(id, made[0].id, states(good, good, good, good))
    first = registry.deployments.list_members(id, Query(limit=2, descending=False))
    registry.deployments.put_members(id, made[0].id, states(bad, bad, bad))
    rest = registry.deployments.list_members(id, Query(limit=2, descending=False, page=first.next))
    assert [s.key for s in first.items + rest.items] == ["k0", "k1", "k2"]
    assert [s.state for s in first.items + rest.items] == [good, good, bad]


def test_member_states_of_groups_that_are_out_of_reach_are_forgotten(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id = deployed(registry).id
    for at, of in enumerate(made[:3], start=1):
        registry.deployments.put_members(id, of.id, states(MemberState.SUCCESS))
        updated(registry, id, of, at)
    kept = [len(registry.deployments.list_members(id, group_id=of.id).items) for of in made[:3]]
    assert kept == [0, 1, 1]


def test_change_of_an_inactive_deployment_is_committed_and_it_stays_inactive(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id = deployed(registry).id
    updated(registry, id, made[0], 1)
    request = started(registry)
    with pytest.raises(RecordConflict, match="not INACTIVE"):
        registry.deployments.commit(id, made[1].id, 2, request, inactive=True)
    registry.deployments.set_state(id, DeploymentState.INACTIVE)
    before = registry.deployments.get(id).configuration
    found = registry.deployments.commit(
        id, made[1].id, 2, request, inactive=True, configuration={"engine": {"a": 1}}
    )
    assert (found.state, found.group_id, found.generation) == (
        DeploymentState.INACTIVE,
        made[1].id,
        2,
    )
    assert found.configuration == {**before, "engine": {"a": 1}}


def test_update_writes_only_what_is_given(registry: Registry) -> None:
    first = registry.deployments.create(
        Deployment(id=new_id(DEPLOYMENT), display_name="d", configuration={"a": 1, "b": 2})
    )
    second = registry.deployments.update(
        first.id, first, compartment_id="c", configuration={"b": 3}
    )
    assert (second.display_name, second.compartment_id) == ("d", "c")
    assert second.configuration == {"a": 1, "b": 3}
    with pytest.raises(RecordStale):
        registry.deployments.update(first.id, first, display_name="x")
    registry.deployments.set_state(first.id, DeploymentState.DELETING)
    registry.deployments.set_state(first.id, DeploymentState.DELETED)
    with pytest.raises(RecordAbsent, match="is DELETED"):
        registry.deployments.update(first.id, display_name="x")
