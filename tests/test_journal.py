"""How work is written down: a percentage that follows the steps and never falls."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.core import Silent
from stacked.deployment.journal import WorkProgress, percent_of
from tests.deployments.machine import Machine

STEPS = [
    "Reading the group and its base",
    "Importing vLLM",
    "Starting the engine and loading the base",
    "Warming the adapters' memory",
    "Loading adapters into the engine 1/4",
    "Loading adapters into the engine 4/4",
    "Draining: requests of the old engine may finish",
    "Stopping the old engine",
]


def test_each_step_of_a_start_is_further_on_than_the_one_before() -> None:
    percents = [percent_of(step) for step in STEPS]
    assert percents == sorted(set(percents))
    assert percents[0] > 0
    assert percents[-1] < 100


def test_what_is_no_known_step_is_told_and_does_not_count() -> None:
    assert percent_of("Checking adapters 2/3") == 0


@pytest.mark.parametrize("repeated", [0, 2])
async def test_percentage_does_not_fall_when_a_step_is_taken_again(
    tmp_path: Path, repeated: int
) -> None:
    machine = Machine(tmp_path)
    try:
        work = machine.registry.open_work_request("MODEL_DEPLOYMENT_UPDATE")
        tell = WorkProgress(machine.ledger, work.id, Silent())
        for step in (*STEPS[:5], STEPS[repeated]):
            tell.step(step)
        tell.note("a line")
        found = await machine.ledger.do(machine.registry.get_work_request, work.id)
        assert found.percent == percent_of(STEPS[4])
        assert machine.logs(work).splitlines() == [*STEPS[:5], STEPS[repeated], "a line"]
    finally:
        await machine.close()
