"""What the lab's engine answers while it is fresh, for every test of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stacked.core import Adapter
from tests.live.lab import Answer, Lab


@dataclass(frozen=True)
class Known:
    """Adapters whose answers were written down by the fresh engine, each alone in it."""

    adapters: tuple[Adapter, ...]
    answers: dict[str, Answer]
    """By digest; the base's by `base`."""


@pytest.fixture(scope="session")
def known(lab: Lab) -> Known:
    """The first two are those that the lab serves at first."""

    async def ask() -> dict[str, Answer]:
        answers = {str(each.digest): await lab.alone(each) for each in adapters}
        return answers | {"base": await lab.answer(None)}

    served = [member.content for member in lab.live.routing.members]
    adapters = (*served, *(lab.add() for _ in range(4)))
    answers = lab.run(ask())
    assert len({ids for ids, _ in answers.values()}) == len(answers) == 7
    return Known(adapters, answers)
