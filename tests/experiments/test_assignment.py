"""Which arm a unit gets: published vectors, shares, and how little moves when weights change."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacked.config import ArmConfig, ExperimentConfig
from stacked.experiments.assignment import Split, fnv1a32, mixed

UNITS = [f"user-{number}" for number in range(10_000)]
# How far a share of so many units may be from its limit: beyond five standard deviations.
NEAR = 0.025


def split(
    *weights: float, salt: str = "", keys: Sequence[str] | None = None, served: str = ""
) -> Split:
    keys = keys or [chr(ord("a") + at) for at in range(len(weights))]
    arms = tuple(ArmConfig(key=key, weight=weight) for key, weight in zip(keys, weights, strict=1))
    experiment = ExperimentConfig(key="sql", arms=arms, salt=salt)
    return Split(experiment, {key: f"sha256:{key}" for key in served or keys})


def arms(one: Split) -> list[str]:
    return [one.arm(unit) for unit in UNITS]


def moves(before: Split, after: Split) -> Counter[tuple[str, str]]:
    """How many units went from one arm to another."""
    pairs = zip(arms(before), arms(after), strict=True)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


@pytest.mark.parametrize(
    ("seed", "value", "expected"),
    [
        ("seed", "a", 0.0505),
        ("seed", "b", 0.2696),
        ("foo", "ab", 0.2575),
        ("foo", "def", 0.2019),
        ("89123klj", "8952klfjas09ujkasdf", 0.124),
        ("90850943850283058242805", "123", 0.7516),
        ("()**(%$##$%#$#", '___)((*":&', 0.0128),
    ],
)
def test_the_hash_is_growthbooks(seed: str, value: str, expected: float) -> None:
    """The vectors of version 2 in its specification 0.7.1."""
    assert mixed(fnv1a32(seed.encode()), value.encode()) % 10_000 / 10_000 == expected


def test_fnv1a_is_the_published_one() -> None:
    assert [fnv1a32(text) for text in (b"", b"a", b"foobar")] == [
        0x811C9DC5,
        0xE40C292C,
        0xBF9CF968,
    ]


@pytest.mark.parametrize(
    "weights", [(50, 50), (1, 99), (1, 1, 1), (10, 0, 5, 85), tuple(range(1, 21))]
)
def test_every_arm_gets_its_share(weights: Sequence[float]) -> None:
    found = Counter(arms(split(*weights)))
    for at, weight in enumerate(weights):
        share = found[chr(ord("a") + at)] / len(UNITS)
        assert share == pytest.approx(weight / sum(weights), abs=NEAR)
        assert weight or not share


def test_from_50_50_to_60_40_a_tenth_moves_and_all_to_the_arm_that_grew() -> None:
    moved = moves(split(50, 50), split(60, 40))
    assert set(moved) == {("b", "a")}
    assert moved["b", "a"] / len(UNITS) == pytest.approx(0.1, abs=0.01)


def test_an_arm_that_leaves_moves_its_own_units_alone() -> None:
    before, after = split(1, 1, 1), split(0, 1, 1)
    assert {origin for origin, _ in moves(before, after)} == {"a"}
    assert arms(split(1, 1, 1, served="bc")) == arms(after)
    assert arms(split(1, 1, 1, keys=["c", "a", "b"])) == arms(before)


weights = st.lists(st.floats(0.01, 100), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None)
@given(weights, weights)
def test_a_move_is_never_to_an_arm_that_lost_against_the_one_before(
    before: list[float], after: list[float]
) -> None:
    """And as many move as no assignment without a memory can do better for all weights."""
    p, q = ({key: w / sum(ws) for key, w in zip("abc", ws, strict=1)} for ws in (before, after))
    moved = moves(split(*before), split(*after))
    for origin, goal in moved:
        assert q[goal] / p[goal] > q[origin] / p[origin]
    stay = sum(1 / sum(max(p[j] / p[i], q[j] / q[i]) for j in p) for i in p)
    assert moved.total() / len(UNITS) == pytest.approx(1 - stay, abs=NEAR)
    distance = sum(abs(p[key] - q[key]) for key in p) / 2
    assert 1 - stay <= 2 * distance / (1 + distance) + 1e-9


def test_another_salt_assigns_anew() -> None:
    both = Counter(zip(arms(split(1, 1)), arms(split(1, 1, salt="again")), strict=True))
    for count in both.values():
        assert count / len(UNITS) == pytest.approx(0.25, abs=NEAR)


def test_another_process_assigns_the_same() -> None:
    code = (
        "from stacked.config import ExperimentConfig as E; import sys\n"
        "from stacked.experiments.assignment import Split\n"
        "e = E(key='sql', arms=[dict(key='a'), dict(key='b')])\n"
        "s = Split(e, dict(a='sha256:a', b='sha256:b'))\n"
        "print(s.phase, s.pseudonym('u'), ''.join(s.arm(f'user-{n}') for n in range(500)))"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    here = split(1, 1)
    assert other == [here.phase, here.pseudonym("u"), "".join(arms(here)[:500])]


def test_without_a_unit_the_arm_is_drawn_by_chance() -> None:
    one = split(80, 20)
    found = Counter(one.arm(None) for _ in UNITS)
    assert found["a"] / len(UNITS) == pytest.approx(0.8, abs=NEAR)


def test_a_phase_lasts_while_no_unit_and_no_content_changes() -> None:
    assert split(50, 50).phase == split(1, 1).phase
    assert split(1, 1, keys="ab").phase == split(1, 1, keys="ba").phase
    other = {split(50, 50).phase, split(60, 40).phase, split(50, 50, salt="x").phase}
    other |= {split(50, 50, keys="ac").phase, split(1, 1, 1, served="ab").phase}
    assert len(other) == 4, "an arm that is not served leaves the experiment of the other two"
    experiment = ExperimentConfig(key="sql", arms=(ArmConfig(key="a"), ArmConfig(key="b")))
    assert Split(experiment, {"a": "sha256:a", "b": "sha256:new"}).phase not in other
    unit = experiment.model_copy(update={"unit": "user"})
    assert Split(unit, {"a": "sha256:a", "b": "sha256:b"}).phase not in other


def test_somebody_is_always_there_to_answer() -> None:
    assert {split(0, 1, served="a").arm(unit) for unit in UNITS[:50]} == {"a"}
    assert {split(5e-324, 5e-324).arm(unit) for unit in UNITS[:50]} == {"a", "b"}
    assert {split(5e-324, 1e6).arm(unit) for unit in UNITS[:50]} == {"b"}


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_a_unit(unit: str) -> None:
    one = split(1, 1)
    assert one.arm(unit) == one.arm(unit) != ""
    assert len(one.pseudonym(unit)) == 16


def test_a_unit_of_a_megabyte_costs_what_a_short_one_does() -> None:
    one, long = split(*[1] * 20), "x" * 1_000_000
    assert one.arm(long) == one.arm(long)
    assert {one.arm(long + str(number)) for number in range(200)} == set(one.shares)


def test_a_pseudonym_names_nobody_and_depends_on_the_salt() -> None:
    one, other = split(1, 1, salt="s"), split(1, 1, salt="t")
    assert one.pseudonym("ada@example.com") != other.pseudonym("ada@example.com")
    assert one.pseudonym("ada@example.com") == split(60, 40, salt="s").pseudonym("ada@example.com")
    assert "ada" not in one.pseudonym("ada")
