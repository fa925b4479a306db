"""Deployments: the commit of a group, member states, and what a killed process left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stacked.errors import IllegalMove, RecordAbsent, RecordConflict, RecordStale
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    HISTORY,
    Affected,
    DeployedMember,
    Deployment,
    DeploymentState,
    GroupState,
    HistoryState,
    MemberState,
    ModelGroup,
    Query,
    Recovered,
    Registry,
    VersionHistory,
    WorkStatus,
    new_id,
)
from tests.registry.samples import BASE, adapter, deployed, group, started, stocked


@pytest.fixture(autouse=True)
def stock(registry: Registry) -> None:
    stocked(registry)


@pytest.fixture
def made(registry: Registry) -> list[ModelGroup]:
    return [registry.create_group(group(number)) for number in range(4)]


def update(registry: Registry, deployment: str, to: ModelGroup, generation: int) -> Deployment:
    if registry.get_deployment(deployment).state is DeploymentState.ACTIVE:
        registry.set_deployment_state(deployment, DeploymentState.UPDATING)
    request = started(registry)
    committed = registry.commit_group(deployment, to.id, generation, request)
    registry.succeed(request)
    return committed


def test_deployment_begins_without_a_group(registry: Registry, made: list[ModelGroup]) -> None:
    given = Deployment(id=new_id(DEPLOYMENT), display_name="d", configuration={"base": BASE})
    stored = registry.create_deployment(given)
    assert stored == replace(given, time_updated=given.time_created)
    assert registry.create_deployment(given) == stored
    with pytest.raises(RecordConflict, match="configuration"):
        registry.create_deployment(replace(given, configuration={}))
    with pytest.raises(ValueError, match="commit_group"):
        registry.create_deployment(Deployment(id=new_id(DEPLOYMENT), group_id=made[0].id))


def test_put_describes_and_leaves_group_and_state(
    registry: Registry, made: list[ModelGroup]
) -> None:
    first = registry.put_deployment(Deployment(id=new_id(DEPLOYMENT)))
    committed = update(registry, first.id, made[0], 1)
    put = registry.put_deployment(
        replace(first, display_name="new", configuration={"a": 1}), expect=committed
    )
    assert (put.display_name, put.configuration) == ("new", {"a": 1})
    assert (put.group_id, put.generation, put.state) == (made[0].id, 1, DeploymentState.ACTIVE)
    with pytest.raises(RecordStale):
        registry.put_deployment(first, expect=committed)


def test_commit_switches_and_remembers_the_group_before(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id = deployed(registry).id
    one = update(registry, id, made[0], 1)
    assert (one.state, one.group_id, one.previous_group_id) == (
        DeploymentState.ACTIVE,
        made[0].id,
        None,
    )
    two = update(registry, id, made[1], 2)
    assert (two.group_id, two.generation, two.previous_group_id) == (made[1].id, 2, made[0].id)
    again = update(registry, id, made[1], 3)  # the same group anew: there is still a way back
    assert (again.group_id, again.previous_group_id) == (made[1].id, made[0].id)
    back = update(registry, id, made[0], 4)
    assert (back.group_id, back.previous_group_id) == (made[0].id, made[1].id)


def test_commit_that_is_asked_for_again_is_answered_the_same(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id, request = deployed(registry).id, started(registry)
    first = registry.commit_group(id, made[0].id, 1, request)
    assert registry.commit_group(id, made[0].id, 1, request) == first
    assert len(registry.list_logs(request).items) == 1


def test_commit_that_cannot_be_changes_nothing(registry: Registry, made: list[ModelGroup]) -> None:
    id, request = deployed(registry).id, started(registry)
    registry.set_group_state(made[2].id, GroupState.INACTIVE)
    before = update(registry, id, made[0], 5)
    accepted = registry.open_work_request("MODEL_DEPLOYMENT_UPDATE").id
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
            registry.commit_group(id, group_id, generation, work)
    assert registry.get_deployment(id) == before
    assert registry.list_logs(request).items == ()


def test_second_update_cannot_begin_while_one_runs(registry: Registry) -> None:
    id = deployed(registry).id
    registry.set_deployment_state(id, DeploymentState.ACTIVE)
    registry.set_deployment_state(id, DeploymentState.UPDATING, "to group 2")
    with pytest.raises(IllegalMove, match="UPDATING"):
        registry.set_deployment_state(id, DeploymentState.UPDATING)
    assert registry.get_deployment(id).reason == "to group 2"


def states(*fared: MemberState) -> list[DeployedMember]:
    ids = [BASE, *(adapter(number).id for number in range(4))]
    return [
        DeployedMember(model_id=ids[at], key=f"k{at}", state=state, reason=f"because {at}")
        for at, state in enumerate(fared)
    ]


def test_member_states_are_those_of_the_committed_group(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id = deployed(registry).id
    good, bad = MemberState.SUCCESS, MemberState.FAILED
    assert registry.list_member_states(id).items == ()
    registry.put_member_states(id, made[0].id, states(good, good))
    update(registry, id, made[0], 1)
    registry.put_member_states(id, made[1].id, states(good, bad, good))
    listed = registry.list_member_states(id, Query(sort="display_name")).items
    assert [(s.state, s.display_name) for s in listed] == [(good, "adapter 000000"), (good, "base")]
    tried = registry.list_member_states(id, group_id=made[1].id, state=bad).items
    assert [(s.model_id, s.key, s.reason) for s in tried] == [(adapter(0).id, "k1", "because 1")]
    assert [s.key for s in registry.list_member_states(id, model_id=BASE).items] == ["k0"]
    assert registry.list_member_states(id, display_name="nobody").items == ()


def test_member_states_are_replaced_under_a_reader_who_is_between_two_pages(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id = deployed(registry).id
    good, bad = MemberState.SUCCESS, MemberState.FAILED
    update(registry, id, made[0], 1)
    registry.put_member_states(id, made[0].id, states(good, good, good, good))
    first = registry.list_member_states(id, Query(limit=2, descending=False))
    registry.put_member_states(id, made[0].id, states(bad, bad, bad))
    rest = registry.list_member_states(id, Query(limit=2, descending=False, page=first.next))
    assert [s.key for s in first.items + rest.items] == ["k0", "k1", "k2"]
    assert [s.state for s in first.items + rest.items] == [good, good, bad]


def test_member_states_of_groups_that_are_out_of_reach_are_forgotten(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id = deployed(registry).id
    for at, of in enumerate(made[:3], start=1):
        registry.put_member_states(id, of.id, states(MemberState.SUCCESS))
        update(registry, id, of, at)
    kept = [len(registry.list_member_states(id, group_id=of.id).items) for of in made[:3]]
    assert kept == [0, 1, 1]


def test_recovery_fails_what_was_in_progress_and_the_committed_group_stands(
    registry: Registry, made: list[ModelGroup]
) -> None:
    served, idle, fresh = (deployed(registry).id for _ in range(3))
    update(registry, served, made[0], 1)
    update(registry, idle, made[1], 1)
    registry.set_deployment_state(served, DeploymentState.UPDATING)
    running, accepted = started(registry), registry.open_work_request("MODEL_GROUP_CREATE").id
    creating = registry.create_group(group(3, state=GroupState.CREATING)).id
    line = registry.create_version_history(VersionHistory(id=new_id(HISTORY))).id
    registry.set_version_history_state(line, HistoryState.DELETING)
    untouched = registry.get_deployment(idle)

    recovered = registry.recover()
    assert set(recovered.failed) == {served, fresh, running, accepted, creating, line}
    assert recovered.succeeded == ()
    found = registry.get_deployment(served)
    assert (found.state, found.group_id, found.generation) == (
        DeploymentState.FAILED,
        made[0].id,
        1,
    )
    assert "UPDATING" in found.reason
    assert made[0].id in found.reason
    assert "no group had been committed" in registry.get_deployment(fresh).reason
    assert registry.get_deployment(idle) == untouched
    assert registry.get_group(creating).state is GroupState.FAILED
    assert registry.get_version_history(line).state is HistoryState.FAILED
    for request in (running, accepted):
        assert registry.get_work_request(request).status is WorkStatus.FAILED
        (error,) = registry.list_errors(request).items
        assert error.code == "Interrupted"
    assert registry.recover() == Recovered()
    assert update(registry, served, made[1], 2).state is DeploymentState.ACTIVE


def test_recovery_completes_an_update_that_was_past_its_commit(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id, request = deployed(registry).id, started(registry)
    committed = registry.commit_group(id, made[0].id, 1, request)
    recovered = registry.recover()
    assert recovered == Recovered(failed=(), succeeded=(request,))
    found = registry.get_work_request(request)
    assert (found.status, found.percent) == (WorkStatus.SUCCEEDED, 100)
    assert "after the commit" in registry.list_logs(request).items[-1].message
    assert registry.get_deployment(id) == committed


def test_change_of_an_inactive_deployment_is_committed_and_it_stays_inactive(
    registry: Registry, made: list[ModelGroup]
) -> None:
    id = deployed(registry).id
    update(registry, id, made[0], 1)
    request = started(registry)
    with pytest.raises(RecordConflict, match="not INACTIVE"):
        registry.commit_group(id, made[1].id, 2, request, inactive=True)
    registry.set_deployment_state(id, DeploymentState.INACTIVE)
    before = registry.get_deployment(id).configuration
    found = registry.commit_group(
        id, made[1].id, 2, request, inactive=True, configuration={"engine": {"a": 1}}
    )
    assert (found.state, found.group_id, found.generation) == (
        DeploymentState.INACTIVE,
        made[1].id,
        2,
    )
    assert found.configuration == {**before, "engine": {"a": 1}}


def test_update_writes_only_what_is_given(registry: Registry) -> None:
    first = registry.create_deployment(
        Deployment(id=new_id(DEPLOYMENT), display_name="d", configuration={"a": 1, "b": 2})
    )
    second = registry.update_deployment(first.id, first, compartment_id="c", configuration={"b": 3})
    assert (second.display_name, second.compartment_id) == ("d", "c")
    assert second.configuration == {"a": 1, "b": 3}
    with pytest.raises(RecordStale):
        registry.update_deployment(first.id, first, display_name="x")
    registry.set_deployment_state(first.id, DeploymentState.DELETING)
    registry.set_deployment_state(first.id, DeploymentState.DELETED)
    with pytest.raises(RecordAbsent, match="DELETED"):
        registry.update_deployment(first.id, display_name="x")


@pytest.mark.parametrize(
    ("operation", "during", "after", "status"),
    [
        ("MODEL_DEPLOYMENT_DEACTIVATE", "UPDATING", "INACTIVE", WorkStatus.SUCCEEDED),
        ("MODEL_DEPLOYMENT_DELETE", "DELETING", "DELETED", WorkStatus.SUCCEEDED),
        ("MODEL_DEPLOYMENT_ACTIVATE", "UPDATING", "INACTIVE", WorkStatus.FAILED),
        ("MODEL_DEPLOYMENT_UPDATE", "UPDATING", "FAILED", WorkStatus.FAILED),
    ],
)
def test_recovery_settles_a_deployment_by_what_was_done_to_it(
    registry: Registry,
    made: list[ModelGroup],
    operation: str,
    during: str,
    after: str,
    status: WorkStatus,
) -> None:
    id = deployed(registry).id
    update(registry, id, made[0], 1)
    registry.set_deployment_state(id, DeploymentState[during])
    work = registry.open_work_request(operation, [Affected("UPDATED", "deployment", id)])
    registry.advance(work.id, 10.0)
    registry.recover()
    assert registry.get_deployment(id).state is DeploymentState[after]
    assert registry.get_work_request(work.id).status is status
    assert registry.recover() == Recovered()
