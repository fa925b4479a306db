"""After any sequence of LIVE updates, the engine answers as one that only ever knew the last group.

The right answers are those of the fresh engine, each adapter alone in it, and they are held against
transformers and PEFT too.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stacked.config import ArmConfig, Design, ExperimentConfig
from stacked.core import Adapter, model_id_of
from tests import tiny
from tests.live.conftest import Known
from tests.live.lab import PROMPT, TOKENS, Answer, Lab

# In float32 the same weights answer the same up to the order of additions in a batch.
_NOISE = 1e-3
_KEYS = (None, "x", "y", "z", "w")

Entry = tuple[str | None, int]
"""A key, or None for a model without one, and which of the known adapters is behind it."""

# Of the same few keys and adapters, so that steps add, remove, rename, and change what is behind.
GROUPS = st.lists(
    st.tuples(st.sampled_from(_KEYS), st.integers(0, 5)),
    max_size=6,
    unique_by=lambda entry: entry[0] or entry,
)
SEQUENCES = st.lists(GROUPS, min_size=1, max_size=4)


def close(one: Answer, other: Answer) -> bool:
    """The same tokens, and the same logprobs up to noise."""
    apart = max(abs(a - b) for a, b in zip(one[1], other[1], strict=True))
    return one[0] == other[0] and apart <= _NOISE


def check_sequence(lab: Lab, known: Known, sequence: Sequence[Sequence[Entry]]) -> None:
    generation = lab.live.routing.generation
    for group in sequence:
        members = [(key, known.adapters[number]) for key, number in group]
        outcome = lab.update(members, design=tried(group))
        assert outcome.report is not None, outcome
    assert lab.live.routing.generation == generation + len(sequence)
    check_answers(lab, known, [(key, known.adapters[number]) for key, number in sequence[-1]])
    resident = lab.run(lab.engine.resident())
    assert resident.staged == frozenset()
    assert resident.host == lab.run(lab.engine.list()) == lab.handles()
    held = {handle.digest for handle in lab.live.routing.handles.values()}
    assert held == {known.adapters[number].digest for _, number in sequence[-1]}
    assert len(lab.handles()) == len(held)


def tried(group: Sequence[Entry]) -> Design:
    """An experiment on all keys of a group, the base's included."""
    arms = tuple(ArmConfig(key=key) for key in ("base", *(key for key, _ in group if key)))
    return Design(experiments=(ExperimentConfig(key="tried", arms=arms),))


def check_answers(lab: Lab, known: Known, group: Sequence[tuple[str | None, Adapter]]) -> None:
    """Every key, model id and arm answers as its adapter does, and nothing else is served."""
    assert close(lab.run(lab.answer(None)), known.answers["base"])
    for key, adapter in group:
        names = {key, str(model_id_of(adapter.digest))} - {None}
        for name in names:
            assert close(lab.run(lab.answer(name)), known.answers[str(adapter.digest)]), name
    for unit in ("one", "two", "three"):
        arm = lab.live.routing.arms["tried"].draw(lambda kind, unit=unit: unit).digest
        assert close(lab.run(lab.answer("tried", unit)), known.answers[str(arm or "base")]), unit
    served = {route.key for route in lab.live.routing} - {None}
    assert served == {"base", "tried", *(key for key, _ in group if key)}


def test_reference_answers_are_those_of_transformers_and_peft(lab: Lab, known: Known) -> None:
    made = {str(each.digest): each.path for each in known.adapters} | {"base": None}
    for name, path in made.items():
        (ids,) = tiny.greedy(lab.base.path, [PROMPT], TOKENS, path)
        assert tuple(ids) == known.answers[name][0], name


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(sequence=SEQUENCES)
@pytest.mark.engine
def test_any_sequence_of_updates_ends_as_a_fresh_start_would(
    lab: Lab, known: Known, sequence: list[list[Entry]]
) -> None:
    check_sequence(lab, known, sequence)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(GROUPS, min_size=1, max_size=8))
@pytest.mark.long
def test_any_long_sequence_of_updates_ends_as_a_fresh_start_would(
    lab: Lab, known: Known, sequence: list[list[Entry]]
) -> None:
    check_sequence(lab, known, sequence)


def test_steps_that_people_make_end_as_a_fresh_start_would(lab: Lab, known: Known) -> None:
    """Add, remove, rename, change the weights behind a key, two keys of one model, none at all."""
    steps: dict[str, list[Entry]] = {
        "begin": [("x", 0), ("y", 1)],
        "add": [("x", 0), ("y", 1), ("z", 2)],
        "remove": [("x", 0), ("z", 2)],
        "rename": [("x", 0), ("w", 2)],
        "change the weights": [("x", 3), ("w", 2)],
        "trade places": [("x", 2), ("w", 3)],
        "two keys of one model": [("x", 2), ("w", 2)],
        "a model without a key": [("x", 2), (None, 4)],
        "nothing but the base": [],
    }
    for entries in steps.values():
        check_sequence(lab, known, [entries])
