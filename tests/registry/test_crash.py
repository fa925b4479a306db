"""A writer that is killed at any instant: the records are consistent, and no commit is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from stacked.registry import (
    DeploymentState,
    MemberState,
    Query,
    Recovered,
    Registry,
    Shared,
    WorkStatus,
)
from tests.registry.samples import adapter, deployed, stocked

ROUNDS = 25
ROOT = Path(__file__).parents[2]


class Writers:
    """The program that forks a writer at a time."""

    def __init__(self, where: Path | Shared, deployment: str) -> None:
        place = [str(where)] if isinstance(where, Path) else [where.url, where.schema]
        command = [sys.executable, "-m", "tests.registry.writers", deployment, *place]
        self.program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def run_and_kill(self, commits: int, seconds: float) -> int:
        """Kill a new writer `seconds` after that many commits; the last that it reported, or 0."""
        assert self.program.stdin is not None
        self.program.stdin.write("go\n")
        self.program.stdin.flush()
        pid, reported, lines = 0, 0, 0
        while not pid or lines <= commits:
            pid, reported = self.read(reported, pid)
            lines += 1
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        while pid:
            pid, reported = self.read(reported, pid)
        return reported

    def read(self, reported: int, pid: int) -> tuple[int, int]:
        assert self.program.stdout is not None
        line = self.program.stdout.readline().split()
        assert line, "the program of the writers has ended"
        if line[0] == "pid":
            return int(line[1]), reported
        return (0, reported) if line[0] == "dead" else (pid, int(line[0]))

    def close(self) -> None:
        self.program.kill()
        self.program.communicate()


def test_killed_writer_leaves_consistent_records_and_loses_no_commit(where: Path | Shared) -> None:
    with Registry(where) as registry:
        stocked(registry, 8)
        deployment = deployed(registry).id
    writers = Writers(where, deployment)
    chance = random.Random(7)
    committed, interrupted, past_commit = 0, 0, 0
    try:
        for at in range(ROUNDS):
            reported = writers.run_and_kill(at % 4, chance.uniform(0.0, 0.04))
            with Registry(where) as registry:
                committed = check_served(registry, deployment, max(committed, reported))
                recovered = registry.recover()
                check_settled(registry, deployment, committed)
                assert registry.recover() == Recovered()
            interrupted += bool(recovered.failed)
            past_commit += bool(recovered.succeeded)
    finally:
        writers.close()
    print(
        f"{ROUNDS} kills, {committed} commits; found {interrupted} times an update that had to "
        f"fail, {past_commit} times one that was past its commit"
    )
    assert committed >= sum(at % 4 for at in range(ROUNDS))
    assert interrupted + past_commit > 2  # kills did meet updates under way


def check_served(registry: Registry, deployment: str, reported: int) -> int:
    """The committed group is whole and is the one of its generation; the generation."""
    found = registry.deployments.get(deployment)
    assert found.generation >= reported  # what was acknowledged stands
    assert found.generation <= reported + 1
    if found.group_id is None:
        assert found.generation == 0
        return 0
    served = registry.groups.get(found.group_id)
    first = found.generation % 7
    assert served.display_name == str(found.generation)
    wanted = [adapter(first).id, adapter(first + 1).id]
    assert [m.model_id for m in served.members[1:]] == wanted
    states = registry.deployments.list_members(deployment).items
    assert [state.model_id for state in states] == [m.model_id for m in reversed(served.members)]
    assert {state.state for state in states} == {MemberState.SUCCESS}
    if found.generation > 1:
        assert found.previous_group_id is not None
        previous = registry.groups.get(found.previous_group_id)
        assert previous.display_name == str(found.generation - 1)
    return found.generation


def check_settled(registry: Registry, deployment: str, generation: int) -> None:
    """Nothing is in progress, and every work request shows whether its group was committed."""
    found = registry.deployments.get(deployment)
    assert found.state in (DeploymentState.ACTIVE, DeploymentState.FAILED)
    assert found.generation == generation
    if found.state is DeploymentState.FAILED:
        assert (found.group_id or "no group had been committed") in found.reason
    page, succeeded = None, 0
    while True:
        part = registry.work_requests.list(Query(page=page))
        for request in part.items:
            assert request.status in (WorkStatus.SUCCEEDED, WorkStatus.FAILED)
            succeeded += request.status is WorkStatus.SUCCEEDED
            assert (request.percent == 100) == (request.status is WorkStatus.SUCCEEDED)
            assert request.time_finished is not None
        page = part.next
        if page is None:
            break
    assert succeeded == generation
