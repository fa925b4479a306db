"""The records of a fleet's deployment: founded once, and settled by any number of its servers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from stacked.config import StorageConfig
from stacked.deployment.joining import Joining
from stacked.deployment.ledger import Ledger
from stacked.deployment.settling import settle
from stacked.errors import ConfigInvalid, DataDirInUse
from stacked.fleet.shared import (
    Abort,
    Advance,
    Beat,
    Fleet,
    Found,
    Join,
    Look,
    Mode,
    Propose,
    Report,
    Stage,
)
from stacked.registry import (
    Affected,
    Deployment,
    DeploymentState,
    MemberState,
    Shared,
    WorkStatus,
)
from stacked.registry.fleets import FleetStore, fleet_of
from tests.postgres import Postgres
from tests.registry.samples import deployed, group, stocked, updated
from tests.registry.test_sharing import end_sessions
from tests.waiting import until

ACTIVE, UPDATING = DeploymentState.ACTIVE, DeploymentState.UPDATING


class Servers:
    """Ledgers of servers that share their records, each with a directory of its own."""

    def __init__(self, directory: Path, storage: StorageConfig) -> None:
        self._directory, self._storage = directory, storage
        self.opened = ExitStack()
        self._count = 0

    @property
    def fleet(self) -> Shared:
        return fleet_of(Shared(str(self._storage.database_url), "stacked_g"))

    def one(self, lease: float | None = 1.0) -> Ledger:
        self._count += 1
        place = self._directory / str(self._count)
        nothing = cast(Any, None)
        ledger = Ledger(place, "g", nothing, nothing, self._storage, lease=lease)
        self.opened.callback(ledger.close)
        return ledger


@pytest.fixture
def servers(tmp_path: Path, postgres: Postgres) -> Iterator[Servers]:
    for schema in ("stacked_g", "fleet_stacked_g"):
        postgres.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    made = Servers(tmp_path, StorageConfig(database=SecretStr(postgres.url())))
    with made.opened:
        yield made


def founded(ledger: Ledger) -> Deployment:
    """A deployment that serves a first group, and its fleet."""
    stocked(ledger.registry)

    def begin() -> Deployment:
        id = deployed(ledger.registry, display_name="d").id
        return updated(ledger.registry, id, ledger.registry.groups.create(group(1)), 1)

    assert ledger.fleet is not None
    return Joining(ledger, ledger.fleet, Mode.GLOBAL).found("", begin)


def proposed(ledger: Ledger, deployment: Deployment) -> Fleet:
    """An update that this server has begun."""
    registry, store = ledger.registry, ledger.fleet
    assert store is not None
    target = registry.groups.create(group(2, 3)).id
    work = registry.work_requests.open("U", [Affected("UPDATED", "d", deployment.id)])
    registry.work_requests.advance(work.id, 20)
    store.carry_out("a/1", Join(Report("a/1", "a", 1, 1)))
    fleet = store.carry_out("a/1", Propose("a/1", work.id, target, 1)).fleet
    assert fleet is not None
    assert fleet.proposal == work.id
    registry.deployments.set_state(deployment.id, UPDATING)
    return fleet


def committed(fleet: Fleet) -> Fleet:
    done = {"stage": Stage.COMMITTED, "generation": fleet.fence, "group": fleet.target}
    return replace(fleet, target="", **done)


def at_once(ledgers: list[Ledger], *args: Any) -> None:
    with ThreadPoolExecutor(len(ledgers)) as pool:
        for each in [pool.submit(settle, ledger.registry, *args) for ledger in ledgers]:
            each.result()


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_committed_is_recorded_once_whoever_sees_it(servers: Servers, gone: bool) -> None:
    ledgers = [servers.one() for _ in range(3)]
    registry = ledgers[0].registry
    deployment = founded(ledgers[0])
    fleet = committed(proposed(ledgers[0], deployment))
    at_once(ledgers, deployment.id, fleet, gone)
    record = registry.deployments.get(deployment.id)
    assert (record.state, record.group_id, record.generation) == (ACTIVE, fleet.group, 2)
    assert record.previous_group_id == deployment.group_id
    assert record.work_request_id == fleet.proposal
    members = registry.deployments.list_members(deployment.id).items
    assert {each.key for each in members} == {"base", "k2", "k3"}
    assert {each.state for each in members} == {MemberState.SUCCESS}
    work = registry.work_requests.get(fleet.proposal)
    assert work.status is (WorkStatus.SUCCEEDED if gone else WorkStatus.IN_PROGRESS)
    at_once(ledgers, deployment.id, fleet, gone)
    assert registry.deployments.get(deployment.id) == record
    assert registry.work_requests.get(fleet.proposal) == work


def test_update_of_one_that_is_gone_has_failed_and_the_next_one_is_not_touched(
    servers: Servers,
) -> None:
    ledgers = [servers.one() for _ in range(3)]
    registry = ledgers[0].registry
    deployment = founded(ledgers[0])
    fleet = replace(proposed(ledgers[0], deployment), stage=Stage.ABORTED, reason="it is gone")
    at_once(ledgers, deployment.id, fleet, False)
    assert registry.work_requests.get(fleet.proposal).status is WorkStatus.IN_PROGRESS
    at_once(ledgers, deployment.id, fleet, True)
    assert registry.work_requests.get(fleet.proposal).status is WorkStatus.FAILED
    (error,) = registry.work_requests.list_errors(fleet.proposal).items
    assert (error.code, error.message) == ("UpdateFailed", "it is gone")
    record = registry.deployments.get(deployment.id)
    assert (record.state, record.group_id) == (ACTIVE, deployment.group_id)
    assert "it is gone" in record.reason
    registry.deployments.set_state(deployment.id, UPDATING)  # by the next update
    at_once(ledgers, deployment.id, fleet, True)
    assert registry.deployments.get(deployment.id).state is UPDATING


def test_later_start_settles_what_a_fleet_that_was_killed_had_committed(servers: Servers) -> None:
    first = servers.one()
    deployment = founded(first)
    fleet = proposed(first, deployment)
    first.registry.close()  # as a kill does: nothing is written

    later = servers.one()
    assert later.registry.work_requests.get(fleet.proposal).status is WorkStatus.IN_PROGRESS
    assert later.last_active() == later.registry.deployments.get(deployment.id)
    assert later.fleet is not None
    joining = Joining(later, later.fleet, Mode.GLOBAL)
    held = joining.committed()
    assert held is not None
    assert (held.id, held.group_id, held.generation) == (deployment.id, deployment.group_id, 1)
    settle(later.registry, deployment.id, committed(fleet), True)
    assert later.registry.work_requests.get(fleet.proposal).status is WorkStatus.SUCCEEDED
    assert later.registry.deployments.get(deployment.id).generation == 2


def commits(store: FleetStore, fence: int) -> None:
    """All that there are, the one, are ready, and then hold."""
    for ready, held in ((fence, 0), (fence, fence)):
        report = Report("a/1", "a", 2 * fence + bool(held), fence - 1, ready, held)
        store.carry_out("a/1", Beat(report))
        store.carry_out("a/1", Advance(fence))


@pytest.mark.parametrize("shared", [True, False])
def test_next_start_serves_what_was_committed_when_all_were_killed(
    servers: Servers, shared: bool
) -> None:
    first = servers.one()
    deployment = founded(first)
    fleet = proposed(first, deployment)
    assert first.fleet is not None
    commits(first.fleet, 2)
    first.close()
    later = servers.one(1.0 if shared else None)
    held = later.last_active()
    assert held is not None
    assert (held.id, held.group_id, held.generation) == (deployment.id, fleet.target, 2)
    status = later.registry.work_requests.get(fleet.proposal).status
    assert status is (WorkStatus.IN_PROGRESS if shared else WorkStatus.SUCCEEDED)


def test_mode_of_a_fleet_is_that_of_the_first_file_after_all_have_ended(servers: Servers) -> None:
    first = servers.one()
    founded(first)

    def mode(ledger: Ledger, given: Mode) -> Mode:
        assert ledger.fleet is not None
        Joining(ledger, ledger.fleet, given).committed()
        fleet = ledger.fleet.carry_out("", Look()).fleet
        assert fleet is not None
        return fleet.mode

    second = servers.one()
    assert mode(second, Mode.SESSION) is Mode.GLOBAL
    first.close()
    until(lambda: second.registry.alone)
    assert mode(second, Mode.SESSION) is Mode.SESSION


def test_an_update_that_was_given_up_is_not_spared_for_ever(servers: Servers) -> None:
    first = servers.one()
    deployment = founded(first)
    old = proposed(first, deployment)
    assert first.fleet is not None
    first.fleet.carry_out("a/1", Abort(old.fence, "no"))
    target = first.registry.groups.create(group(1, 2)).id
    first.fleet.carry_out("a/1", Propose("a/1", "another", target, old.fence))
    first.registry.close()
    later = servers.one()
    assert later.registry.work_requests.get(old.proposal).status is WorkStatus.FAILED


@pytest.mark.parametrize("happened", [True, False])
def test_work_of_one_that_was_killed_is_ended_as_it_went_though_others_followed(
    servers: Servers, happened: bool
) -> None:
    first, other = servers.one(), servers.one()
    fleet = proposed(first, founded(first))
    assert first.fleet is not None
    if happened:
        commits(first.fleet, 2)
    else:
        first.fleet.carry_out("a/1", Abort(2, "no"))
    first.fleet.carry_out("a/1", Propose("a/1", "another", fleet.target, 2))
    first.registry.close()
    gone: frozenset[int] = frozenset()
    while other.registry.work_requests.get(fleet.proposal).time_finished is None:
        gone = other.registry.recover_others(gone)
    status = other.registry.work_requests.get(fleet.proposal).status
    assert status is (WorkStatus.SUCCEEDED if happened else WorkStatus.FAILED)


def working(ledger: Ledger) -> str:
    """Work of a server that is a member."""
    assert ledger.fleet is not None
    work = ledger.registry.work_requests.open("U")
    ledger.registry.work_requests.advance(work.id, 20)
    ledger.fleet.carry_out("a/1", Join(Report("a/1", "a", 1, 1)))
    return work.id


def test_work_of_one_that_lost_its_session_is_not_ended_while_it_reports(
    servers: Servers, postgres: Postgres
) -> None:
    first, other = servers.one(60.0), servers.one(60.0)
    founded(first)
    work = working(first)
    end_sessions(postgres)
    with ThreadPoolExecutor(1) as pool:
        assert first.fleet is not None
        gone = other.registry.recover_others(())
        first.fleet.carry_out("a/1", Beat(Report("a/1", "a", 2, 1)))
        assert not other.registry.recover_others(gone)
        assert not other.registry.alone
        starting = pool.submit(servers.one, 60.0)
        with pytest.raises(TimeoutError):
            starting.result(1.0)
        # As it looks for what others have left, it claims the records again.
        assert not first.registry.recover_others(())
        assert starting.result().registry.work_requests.get(work).time_finished is None
    assert first.registry.work_requests.succeed(work).status is WorkStatus.SUCCEEDED


def test_work_of_one_that_was_killed_is_ended_when_its_lease_is_over(servers: Servers) -> None:
    first, other = servers.one(), servers.one()
    founded(first)
    works = [working(first), working(other)]
    first.registry.close()
    gone: frozenset[int] = frozenset()
    while other.registry.work_requests.get(works[0]).time_finished is None:
        gone = other.registry.recover_others(gone)
    other.registry.close()
    later = servers.one()  # which waits for a lease
    status = [later.registry.work_requests.get(id).status for id in works]
    assert status == [WorkStatus.FAILED] * 2


def test_one_of_many_that_begin_at_once_founds_the_fleet(servers: Servers) -> None:
    ledgers = [servers.one() for _ in range(3)]
    stocked(ledgers[0].registry)
    begun: list[Ledger] = []

    def start(ledger: Ledger) -> Deployment:
        assert ledger.fleet is not None
        group_id = ledger.registry.groups.create(group(1 + ledgers.index(ledger))).id

        def begin() -> Deployment:
            begun.append(ledger)
            id = deployed(ledger.registry).id
            return updated(ledger.registry, id, ledger.registry.groups.get(group_id), 1)

        return Joining(ledger, ledger.fleet, Mode.SESSION).found(group_id, begin)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(start, ledgers))
    (founder,) = begun
    mine = found[ledgers.index(founder)]
    assert {each.id for each in found} == {mine.id}
    assert {each.group_id for each in found} == {mine.group_id}
    assert sorted(each.generation for each in found) == [0, 0, 1], "others have another group"
    assert founder.fleet is not None
    fleet = founder.fleet.carry_out("", Look()).fleet
    assert fleet == Fleet(Mode.SESSION, 1, str(mine.group_id), 1)
    assert len(founder.registry.deployments.list().items) == 1


def test_fleet_begins_anew_after_a_server_alone_has_had_its_records(servers: Servers) -> None:
    first = servers.one()
    deployment = founded(first)
    first.close()
    alone = servers.one(None)
    target = alone.registry.groups.create(group(3))
    updated(alone.registry, deployment.id, target, 2)
    with pytest.raises(DataDirInUse):
        servers.one()
    alone.close()
    later = servers.one()
    assert later.fleet is not None
    joining = Joining(later, later.fleet, Mode.GLOBAL)
    assert joining.committed() is None
    held = later.last_active()
    assert held is not None
    joining.found(str(held.group_id), lambda: held)
    assert later.fleet.carry_out("", Look()).fleet == Fleet(Mode.GLOBAL, 2, target.id, 2)
    # One of the earlier fleet that comes back changes nothing of this one.
    stale = FleetStore(servers.fleet, owner=1)
    with pytest.raises(DataDirInUse, match="restart this one"):
        stale.carry_out("", Found(Fleet(Mode.GLOBAL, 1, "g", 1)))
    stale.close()


def test_fleet_without_a_database_is_refused(tmp_path: Path) -> None:
    nothing = cast(Any, None)
    with pytest.raises(ConfigInvalid, match="--join"):
        Ledger(tmp_path, "g", nothing, nothing, StorageConfig(), lease=1.0)


def test_death_of_an_engine_is_no_state_of_what_others_serve(servers: Servers) -> None:
    ledger = servers.one()
    id = founded(ledger).id
    ledger.died(id, "killed")
    assert ledger.registry.deployments.get(id).state is ACTIVE
    ledger.came_back(id, {"m": "quarantined"})
    assert ledger.registry.deployments.get(id).state is ACTIVE
