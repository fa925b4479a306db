"""Steps are values: shares that make one whole, and sentences that are made from them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stacked.steps import Counted, Heard, Phase, Prepare, Silent, Start, Step, Stop, sentence

WORKS = (Start, Stop, Phase, Prepare)


def test_all_works_are_looked_at() -> None:
    assert set(Step.__subclasses__()) == set(WORKS)


@pytest.mark.parametrize("work", WORKS)
def test_shares_make_99_and_each_step_begins_where_the_one_before_ends(work: type[Step]) -> None:
    steps = list(work)
    assert [steps[0].percent(0), steps[-1].percent(1)] == [0, 99]
    assert all(one.percent(1) == other.percent(0) for one, other in pairwise(steps))
    assert len(steps) == len(work.__members__), "two steps of the same words are one"


@pytest.mark.parametrize(("done", "percent"), [(-1, 2), (0, 2), (0.5, 31), (1, 60), (7, 60)])
def test_what_is_done_of_a_step_is_a_share_of_its_own(done: float, percent: float) -> None:
    assert Phase.STAGE.percent(done) == percent


def test_a_sentence_is_made_from_step_and_detail() -> None:
    assert sentence(Start.IMPORT) == "Importing vLLM"
    assert sentence(Phase.SWITCH, "generation 2 is live") == "switching: generation 2 is live"


class Told(Silent):
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[Step, float, str]] = []

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        self.steps.append((step, done, detail))


def test_what_is_heard_is_passed_on() -> None:
    told, heard = Told(), list[str]()
    Heard(told, heard.append).step(Start.LOAD, 0.5, "2/4")
    assert told.steps == [(Start.LOAD, 0.5, "2/4")]
    assert heard == ["Loading the members: 2/4"]


def test_many_parts_are_told_once_a_second_and_the_first_and_last_always() -> None:
    told = Told()
    count = Counted(told, Start.LOAD, 500)
    for done in range(1, 501):
        count(done)
    assert told.steps[0] == (Start.LOAD, 0.002, "1/500")
    assert told.steps[-1] == (Start.LOAD, 1.0, "500/500")
    assert len(told.steps) < 10
