"""Records that several processes share: who may claim them, and what one leaves to the others."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stacked.errors import DataDirInUse
from stacked.registry import Affected, DeploymentState, Registry, Shared, WorkStatus
from tests.postgres import Postgres
from tests.registry.samples import deployed, group, started, stocked, updated
from tests.waiting import until

ROOT = Path(__file__).parents[2]

# Claims the records, opens work on a deployment if there is one, and waits to be killed.
WORKER = """
import json, sys
from stacked.registry import Affected, DeploymentState, Registry, Shared
url, schema, deployment = sys.argv[1:]
registry = Registry(Shared(url, schema))
registry.claim(shared=True)
recovered = registry.recover()
named = [Affected("UPDATED", "d", deployment)]
work = registry.work_requests.open("MODEL_DEPLOYMENT_UPDATE", named)
registry.work_requests.advance(work.id, 10)
if deployment:
    registry.deployments.set_state(deployment, DeploymentState.UPDATING)
print(json.dumps([work.id, recovered.failed]), flush=True)
sys.stdin.read()
registry.work_requests.succeed(work.id)
"""


class Worker:
    def __init__(self, place: Shared, deployment: str = "") -> None:
        command = [sys.executable, "-c", WORKER, place.url, place.schema, deployment]
        pipe: Any = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)

    def began(self) -> tuple[str, list[str]]:
        """Its work, and what it found unfinished when it began."""
        assert self.process.stdout is not None
        work, failed = json.loads(self.process.stdout.readline())
        return work, failed

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        """Have it end its work."""
        self.process.communicate("")
        assert self.process.returncode == 0


@contextmanager
def workers() -> Iterator[list[Worker]]:
    made: list[Worker] = []
    try:
        yield made
    finally:
        for each in made:
            each.kill()


@pytest.fixture
def place(postgres: Postgres) -> Shared:
    return postgres.shared()


@pytest.fixture
def stock(place: Shared) -> str:
    """The id of a deployment that serves."""
    with Registry(place) as registry:
        stocked(registry)
        id = deployed(registry).id
        updated(registry, id, registry.groups.create(group(1)), 1)
    return id


def end_sessions(postgres: Postgres) -> None:
    ours = "FROM pg_stat_activity WHERE application_name LIKE 'stacked %'"
    postgres.run(f"SELECT pg_terminate_backend(pid) {ours}")


# -- claims -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [*itertools.product((True, False), repeat=3)])
def test_claims_in_every_order_are_shared_by_all_or_one_is_alone(
    place: Shared, kinds: tuple[bool, ...]
) -> None:
    with ExitStack() as opened:
        held: list[bool] = []
        for shared in kinds:
            registry = opened.enter_context(Registry(place))
            if held and not (shared and all(held)):
                step = "join it" if held[0] else "stop it"
                with pytest.raises(DataDirInUse, match=step):
                    registry.claim(shared=shared)
                continue
            registry.claim(shared=shared)
            stocked(registry)
            held.append(shared)


def test_records_are_free_for_one_alone_when_all_that_shared_them_have_ended(place: Shared) -> None:
    with Registry(place) as alone:
        with Registry(place) as one, Registry(place) as other:
            one.claim(shared=True)
            other.claim(shared=True)
            assert one.owner == other.owner
            one.close()
            with pytest.raises(DataDirInUse):
                alone.claim()
        alone.claim()
        assert alone.owner > other.owner


def test_those_that_lost_the_server_go_on_unless_another_was_alone_meanwhile(
    place: Shared, postgres: Postgres
) -> None:
    with Registry(place) as one, Registry(place) as other, Registry(place) as third:
        one.claim(shared=True)
        other.claim(shared=True)
        end_sessions(postgres)
        third.claim(shared=True)
        for registry in (one, other, third):
            stocked(registry)
        end_sessions(postgres)
        with Registry(place) as alone:
            alone.claim()
            with pytest.raises(DataDirInUse, match="stop it"):
                one.work_requests.open("X")
        for registry in (one, other):
            with pytest.raises(DataDirInUse, match="restart this one"):
                registry.work_requests.open("X")
        with Registry(place) as later:
            later.claim(shared=True)  # of another fleet than that which was interrupted
            stocked(later)
            with pytest.raises(DataDirInUse, match="restart this one"):
                one.work_requests.open("X")


def test_one_alone_that_lost_the_server_is_refused_after_a_fleet_had_it(
    place: Shared, postgres: Postgres
) -> None:
    with Registry(place) as alone, Registry(place) as fleet:
        alone.claim()
        end_sessions(postgres)
        fleet.claim(shared=True)
        with pytest.raises(DataDirInUse, match="join it"):
            alone.work_requests.open("X")
        fleet.close()
        with pytest.raises(DataDirInUse, match="restart this one"):
            alone.work_requests.open("X")


# -- what a process leaves ----------------------------------------------------------------------


def test_work_of_one_that_was_killed_is_ended_and_that_of_the_others_is_not(
    place: Shared, stock: str
) -> None:
    with Registry(place) as registry, workers() as running:
        registry.claim(shared=True)
        own = started(registry)
        running += [Worker(place, stock), Worker(place)]
        (killed, _), (other, _) = (each.began() for each in running)
        assert registry.deployments.get(stock).state is DeploymentState.UPDATING
        assert registry.recover().failed == ()
        running[0].kill()
        until(lambda: registry.recover().failed)
        assert registry.work_requests.get(killed).status is WorkStatus.FAILED
        found = registry.deployments.get(stock)
        assert (found.state, found.generation) == (DeploymentState.ACTIVE, 1)
        assert registry.work_requests.get(own).status is WorkStatus.IN_PROGRESS
        assert registry.work_requests.get(other).status is WorkStatus.IN_PROGRESS
        running[1].end()
        assert registry.work_requests.get(other).status is WorkStatus.SUCCEEDED


def test_three_that_begin_at_once_end_each_piece_of_work_once_and_none_of_the_others(
    place: Shared, stock: str
) -> None:
    with workers() as running, Registry(place) as registry:
        running += [Worker(place, stock), Worker(place)]
        gone = {each.began()[0] for each in running}
        for each in running:
            each.kill()
        later = [Worker(place) for _ in range(3)]
        running += later
        begun = [each.began() for each in later]
        ended = [id for _, failed in begun for id in failed]
        assert sorted(ended) == sorted({*gone, stock})
        for each in later:
            each.end()
        for work, _ in begun:
            assert registry.work_requests.get(work).status is WorkStatus.SUCCEEDED


def test_one_that_works_on_ends_what_was_left_at_the_second_look(
    place: Shared, stock: str, postgres: Postgres
) -> None:
    with Registry(place) as one, Registry(place) as other, workers() as running:
        one.claim(shared=True)
        other.claim(shared=True)
        running.append(Worker(place, stock))
        left, _ = running[0].began()
        own, others = started(one), started(other)
        running[0].kill()
        until(lambda: one.recover_others(()))
        assert one.work_requests.get(left).status is WorkStatus.IN_PROGRESS
        end_sessions(postgres)  # another one seems to be gone until it looks itself
        gone = one.recover_others(())
        assert len(gone) == 2
        other.recover_others(())
        one.recover_others(gone)
        assert one.work_requests.get(left).status is WorkStatus.FAILED
        for each in (own, others):
            assert one.work_requests.get(each).status is WorkStatus.IN_PROGRESS


def test_what_no_work_names_is_settled_only_by_one_that_is_alone(place: Shared, stock: str) -> None:
    with Registry(place) as one, Registry(place) as other:
        one.claim(shared=True)
        other.claim(shared=True)
        one.deployments.set_state(stock, DeploymentState.UPDATING)
        other.recover()
        assert other.deployments.get(stock).state is DeploymentState.UPDATING
        one.close()
        until(lambda: other.recover().failed == (stock,))
        assert other.deployments.get(stock).state is DeploymentState.FAILED


def test_spared_work_and_what_it_acts_on_stay_as_they_are(place: Shared, stock: str) -> None:
    with Registry(place) as registry:
        work = registry.work_requests.open("X", [Affected("UPDATED", "d", stock)])
        registry.deployments.set_state(stock, DeploymentState.UPDATING)
        assert registry.recover({work.id}).failed == ()
        assert registry.deployments.get(stock).state is DeploymentState.UPDATING
        assert set(registry.recover().failed) == {work.id, stock}
