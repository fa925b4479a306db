"""What people are shown of a change of experiments."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.config import ArmConfig, Design, ExperimentConfig
from stacked.experiments.changes import changes


def design(more: dict[str, Any] | None = None, **weights: float) -> Design:
    arms = tuple(ArmConfig(key=key, weight=weight) for key, weight in weights.items())
    return Design(experiments=(ExperimentConfig(key="sql", arms=arms, **(more or {})),))


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (design(a=1, b=1), design(a=1, b=1), []),
        (design(a=1, b=1), design(b=1, a=1), []),
        (design(a=50, b=50), design(a=60, b=40), [("weights", "50/50 → 60/40")]),
        (Design(), design(a=1, b=0.5), [("added", "experiment of a 1, b 0.5")]),
        (design(a=1, b=1), Design(), [("removed", "experiment of a 1, b 1")]),
        (design(a=1, b=1), design(a=1), [("arms", "a 1, b 1 → a 1")]),
        (design(a=1), design({"unit": "user"}, a=1), [("assigned", "all units anew, by user")]),
        (design(a=1), design({"salt": "s"}, a=1), [("assigned", "all units anew, by header")]),
    ],
)
def test_what_changed_is_one_line(
    before: Design, after: Design, shown: list[tuple[str, str]]
) -> None:
    found = [*changes(before, after, {}, {})]
    assert found == [("sql", *each) for each in shown]


def test_another_content_of_an_arm_is_a_new_phase() -> None:
    one = design(a=1, b=1)
    found = [*changes(one, one, {"a": "1", "b": "2"}, {"a": "1", "b": "3"})]
    assert found == [("sql", "phase", "a new one: arm b has other content")]
