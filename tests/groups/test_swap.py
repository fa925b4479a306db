"""The plan of a group change: its laws, and the words for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stacked.groups.swap import diff, plan_swap
from tests.groups.test_routing import adapter, member

numbers = st.lists(st.integers(1, 12), unique=True)


@given(numbers, numbers)
def test_plan_keeps_what_both_have_and_loads_and_drops_the_rest(
    live: list[int], wanted: list[int]
) -> None:
    plan = plan_swap([adapter(n) for n in live], [adapter(n) for n in wanted])
    load = {a.digest for a in plan.load}
    assert load | set(plan.keep) == {adapter(n).digest for n in wanted}
    assert set(plan.drop) | set(plan.keep) == {adapter(n).digest for n in live}
    assert not load & set(plan.keep)
    assert not set(plan.drop) & set(plan.keep)


@given(numbers)
def test_change_to_itself_is_empty(live: list[int]) -> None:
    adapters = [adapter(n) for n in live]
    plan = plan_swap(adapters, adapters)
    assert plan.load == plan.drop == ()
    members = [member(f"k{n}", n) for n in live]
    assert diff(members, members) == []


def test_renamed_key_loads_nothing_and_is_told_as_a_rename() -> None:
    before, after = [member("old", 1)], [member("new", 1)]
    plan = plan_swap([m.content for m in before], [m.content for m in after])
    assert plan.load == plan.drop == ()
    (change,) = diff(before, after)
    assert (change.kind, change.before_label, change.label) == ("renamed", "old", "new")


def test_diff_tells_every_kind_of_change() -> None:
    before = [member("same", 1), member("weights", 2), member("gone", 3), member("a", 4)]
    after = [member("same", 1), member("weights", 5), member("b", 4), member("fresh", 6)]
    told = {change.label: change.kind for change in diff(before, after)}
    assert told == {"weights": "changed", "b": "renamed", "fresh": "added", "gone": "removed"}


def test_two_keys_that_trade_models_are_two_changes_and_no_load() -> None:
    before = [member("x", 1), member("y", 2)]
    after = [member("x", 2), member("y", 1)]
    assert [c.kind for c in diff(before, after)] == ["changed", "changed"]
    assert plan_swap([adapter(1), adapter(2)], [adapter(2), adapter(1)]).load == ()
