"""How work is written down: a percentage that follows the steps and never falls."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.deployment.journal import WorkProgress
from stacked.steps import Silent, Start, Step, Stop, sentence
from tests.deployments.machine import Machine


async def percents_and_lines(
    directory: Path, *steps: tuple[Step, float]
) -> tuple[list[float], list[str]]:
    """What a work request says after each of these steps, and all of its lines."""
    machine = Machine(directory)
    try:
        work = machine.registry.work_requests.open("MODEL_DEPLOYMENT_UPDATE")
        tell = WorkProgress(machine.ledger, work.id, Silent())
        percents = []
        for step, done in steps:
            tell.step(step, done, f"{done:.0%}")
            found = await machine.ledger.do(machine.registry.work_requests.get, work.id)
            percents.append(found.percent)
        tell.note("a line")
        await machine.ledger.do(machine.registry.work_requests.get, work.id)
        return percents, machine.logs(work).splitlines()
    finally:
        await machine.close()


async def test_each_step_is_a_percentage_and_a_line(tmp_path: Path) -> None:
    steps = [(Start.IMPORT, 0.0), (Start.LOAD, 0.25), (Start.LOAD, 1.0), (Start.RETIRE, 0.9)]
    percents, lines = await percents_and_lines(tmp_path, *steps)
    assert percents == [step.percent(done) for step, done in steps]
    assert lines == [*(sentence(step, f"{done:.0%}") for step, done in steps), "a line"]
    assert percents == sorted(set(percents))


@pytest.mark.parametrize("again", [Start.MAKE_ROOM, Start.IMPORT, Start.LOAD, Stop.RETIRE])
async def test_percentage_does_not_fall_when_a_step_is_taken_again(
    tmp_path: Path, again: Step
) -> None:
    steps = [(Start.IMPORT, 0.0), (Start.LOAD, 0.5), (again, 0.0)]
    percents, lines = await percents_and_lines(tmp_path, *steps)
    assert percents[2] == percents[1] > percents[0]
    assert lines[2] == sentence(again, "0%")


async def test_a_hundred_is_for_the_end_of_the_work(tmp_path: Path) -> None:
    percents, _ = await percents_and_lines(tmp_path, (Stop.RETIRE, 1.0))
    assert percents == [99.0]
