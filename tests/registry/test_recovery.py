"""What a killed process left in progress is settled."""

from __future__ import annotations

import pytest

from stacked.registry import (
    HISTORY,
    Affected,
    DeploymentState,
    GroupRecord,
    GroupState,
    HistoryState,
    Recovered,
    Registry,
    VersionHistory,
    WorkStatus,
    new_id,
)
from tests.registry.samples import (
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


def test_recovery_fails_what_was_in_progress_and_the_committed_group_stands(
    registry: Registry, made: list[GroupRecord]
) -> None:
    served, idle, fresh = (deployed(registry).id for _ in range(3))
    updated(registry, served, made[0], 1)
    updated(registry, idle, made[1], 1)
    registry.deployments.set_state(served, DeploymentState.UPDATING)
    running, accepted = started(registry), registry.work_requests.open("MODEL_GROUP_CREATE").id
    creating = registry.groups.create(group(3, state=GroupState.CREATING)).id
    line = registry.histories.create(VersionHistory(id=new_id(HISTORY))).id
    registry.histories.set_state(line, HistoryState.DELETING)
    untouched = registry.deployments.get(idle)

    recovered = registry.recover()
    assert set(recovered.failed) == {served, fresh, running, accepted, creating, line}
    assert recovered.succeeded == ()
    found = registry.deployments.get(served)
    assert (found.state, found.group_id, found.generation) == (
        DeploymentState.FAILED,
        made[0].id,
        1,
    )
    assert "UPDATING" in found.reason
    assert made[0].id in found.reason
    assert "no group had been committed" in registry.deployments.get(fresh).reason
    assert registry.deployments.get(idle) == untouched
    assert registry.groups.get(creating).state is GroupState.FAILED
    assert registry.histories.get(line).state is HistoryState.FAILED
    for request in (running, accepted):
        assert registry.work_requests.get(request).status is WorkStatus.FAILED
        (error,) = registry.work_requests.list_errors(request).items
        assert error.code == "Interrupted"
    assert registry.recover() == Recovered()
    assert updated(registry, served, made[1], 2).state is DeploymentState.ACTIVE


def test_recovery_completes_an_update_that_was_past_its_commit(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id, request = deployed(registry).id, started(registry)
    committed = registry.deployments.commit(id, made[0].id, 1, request)
    recovered = registry.recover()
    assert recovered == Recovered(failed=(), succeeded=(request,))
    found = registry.work_requests.get(request)
    assert (found.status, found.percent) == (WorkStatus.SUCCEEDED, 100)
    assert "after the commit" in registry.work_requests.list_logs(request).items[-1].message
    assert registry.deployments.get(id) == committed


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
    made: list[GroupRecord],
    operation: str,
    during: str,
    after: str,
    status: WorkStatus,
) -> None:
    id = deployed(registry).id
    updated(registry, id, made[0], 1)
    registry.deployments.set_state(id, DeploymentState[during])
    work = registry.work_requests.open(operation, [Affected("UPDATED", "deployment", id)])
    registry.work_requests.advance(work.id, 10.0)
    registry.recover()
    assert registry.deployments.get(id).state is DeploymentState[after]
    assert registry.work_requests.get(work.id).status is status
    assert registry.recover() == Recovered()


def test_recovery_ends_though_several_pieces_of_work_stop_one_deployment(
    registry: Registry, made: list[GroupRecord]
) -> None:
    id = deployed(registry).id
    updated(registry, id, made[0], 1)
    registry.deployments.set_state(id, DeploymentState.UPDATING)
    on = [Affected("UPDATED", "deployment", id)] * 2
    for _ in range(2):
        registry.work_requests.open("MODEL_DEPLOYMENT_DEACTIVATE", on)
    registry.recover()
    assert registry.deployments.get(id).state is DeploymentState.INACTIVE
    assert registry.recover() == Recovered()
