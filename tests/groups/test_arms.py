"""A key with arms, in the routing table: who gets which, and what stays hidden or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.config import ArmConfig, Design, ExperimentConfig
from stacked.core import Member
from stacked.errors import KeyConflict, KeyInUse, KeyRemoved, KeyUnknown, ModelQuarantined
from stacked.groups.routing import Route, Routing
from tests.groups.test_routing import BASE, adapter, member

MEMBERS = (member("a", 1), member("b", 2), member("other", 3))


def design(**weights: float) -> Design:
    arms = tuple(ArmConfig(key=key, weight=weight) for key, weight in weights.items())
    return Design(experiments=(ExperimentConfig(key="sql", arms=arms),))


def table(what: Design, *members: Member) -> Routing[str]:
    members = members or MEMBERS
    handles = {m.content.digest: f"h{m.content.digest}" for m in members}
    return Routing.of(BASE, members, handles, design=what)


def drawn(routing: Routing[str], unit: str | None) -> Route[str]:
    return routing.arms["sql"].draw(lambda kind: unit)


HALVES = table(design(a=1, b=1))


def test_the_key_leads_to_an_arm_and_is_the_name_in_answers() -> None:
    for unit in map(str, range(50)):
        route = drawn(HALVES, unit)
        exposure = route.exposure
        assert exposure is not None
        arm = HALVES.resolve(exposure.arm)
        assert (route.digest, route.handle, route.member) == (arm.digest, arm.handle, arm.member)
        assert (route.label, route.key, route.model_id) == ("sql", "sql", arm.model_id)
        assert (exposure.experiment, exposure.phase) == ("sql", HALVES.arms["sql"].split.phase)
        assert exposure.unit == HALVES.arms["sql"].split.pseudonym(unit)
        assert arm.exposure is None
    assert len({drawn(HALVES, str(at)).digest for at in range(50)}) == 2


def test_a_request_without_a_unit_has_none_in_its_exposure() -> None:
    exposures = {drawn(HALVES, None).exposure for _ in range(100)}
    assert {each and (each.arm, each.unit) for each in exposures} == {("a", None), ("b", None)}


def test_the_unit_that_is_looked_for_is_the_experiments() -> None:
    (one,) = design(a=1).experiments
    by_user = table(Design(experiments=(one.model_copy(update={"unit": "user"}),)))
    exposure = by_user.arms["sql"].draw(lambda kind: kind).exposure
    assert exposure is not None
    assert exposure.unit == by_user.arms["sql"].split.pseudonym("user")


def test_the_base_may_be_an_arm() -> None:
    routes = {drawn(table(design(a=1, base=1)), str(at)).digest for at in range(50)}
    assert routes == {None, adapter(1).digest}


def test_two_places_may_name_it_and_not_one_of_its_arms() -> None:
    assert HALVES.resolve_all({"header": "sql", "body": "sql"}).exposure
    for name in ("a", "base", MEMBERS[0].model_id):
        with pytest.raises(KeyConflict):
            HALVES.resolve_all({"header": "sql", "body": name})


def test_its_key_is_listed_and_taken() -> None:
    assert [route.label for route in HALVES] == ["base", "a", "b", "other", "sql"]
    with pytest.raises(KeyInUse, match="already served"):
        HALVES.with_member(member("sql", 7), "h7")
    with pytest.raises(KeyInUse, match="is an experiment"):
        HALVES.without("sql")


def test_permission_for_the_key_is_enough_and_shows_no_arm() -> None:
    seen = HALVES.seen_by(frozenset({"sql"}))
    assert [route.label for route in seen] == ["sql"]
    assert [drawn(seen, unit) for unit in "xyz"] == [drawn(HALVES, unit) for unit in "xyz"]
    for name in ("a", "b", "base", MEMBERS[0].model_id):
        with pytest.raises(KeyUnknown):
            seen.resolve(name)


def test_permission_for_an_arm_does_not_show_the_experiment() -> None:
    seen = HALVES.seen_by(frozenset({"a"}))
    assert [route.label for route in seen] == ["a"]
    with pytest.raises(KeyUnknown):
        seen.resolve("sql")
    # Nor when there is nobody left to answer it.
    idle = HALVES.without("a")[0].without("b")[0].seen_by(frozenset({"other"}))
    with pytest.raises(KeyUnknown):
        idle.resolve("sql")


def gone(how: str) -> Routing[str]:
    if how == "removed":
        return HALVES.without("a")[0]
    return HALVES.withholding(adapter(1).digest, "it kills engines")


@pytest.mark.parametrize("how", ["removed", "quarantined"])
def test_units_of_an_arm_that_is_gone_get_another_in_a_new_phase(how: str) -> None:
    after = gone(how)
    assert {drawn(after, str(at)).digest for at in range(50)} == {adapter(2).digest}
    assert after.arms["sql"].split.phase != HALVES.arms["sql"].split.phase
    assert after.design == HALVES.design
    back = after.with_member(member("a", 1), "h1")
    assert back.arms["sql"].split.phase == HALVES.arms["sql"].split.phase


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("removed", KeyRemoved, "no arm of experiment 'sql' is served"),
        ("quarantined", ModelQuarantined, "it kills engines"),
    ],
)
def test_without_any_arm_the_key_says_why(how: str, error: type[Exception], words: str) -> None:
    idle = gone(how).without("b")[0].settled(frozenset({"a", "b"}))
    for routing in (idle, idle.seen_by(frozenset({"sql"}))):
        assert "sql" not in routing.arms
        with pytest.raises(error, match=words):
            routing.resolve("sql")
    with pytest.raises(KeyInUse):
        idle.with_member(member("sql", 9), "h9")
    again = idle.with_member(member("b", 2), "h2")
    assert drawn(again, "unit").digest == adapter(2).digest


def test_another_content_of_an_arm_is_another_phase_and_the_units_stay() -> None:
    after = table(design(a=1, b=1), member("a", 9), MEMBERS[1])
    assert after.arms["sql"].split.phase != HALVES.arms["sql"].split.phase
    for unit in map(str, range(50)):
        before, now = drawn(HALVES, unit).exposure, drawn(after, unit).exposure
        assert before is not None
        assert now is not None
        assert before.arm == now.arm


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=8),
    st.lists(st.text(max_size=5), max_size=20),
)
def test_within_one_phase_a_unit_has_one_arm_and_an_arm_one_content(
    changes: list[tuple[str, int]], units: list[str]
) -> None:
    """Weights go up and down to none, contents are replaced, arms are taken out."""
    weights, contents = {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3}
    seen: dict[tuple[str, str], tuple[str, object]] = {}
    for key, number in changes:
        if number == 3:
            contents[key] += 10
        else:
            weights[key] = number
        if not any(weights.values()):
            continue
        members = [member(each, contents[each]) for each in "abc"]
        routing = table(design(**weights), *members)
        for one in (routing, routing.without(key)[0]):
            for unit in units:
                route = drawn(one, unit)
                assert route.exposure is not None
                got = (route.exposure.arm, route.digest)
                assert seen.setdefault((route.exposure.phase, unit), got) == got


def test_routes_have_the_cards_of_their_keys_whoever_asks() -> None:
    pinned = design(a=1, b=1).model_copy(update={"gpus": {"a": (0,), "b": (1,), BASE.key: (2,)}})
    whole = table(pinned)
    for routing in (whole, whole.seen_by(frozenset({"a", "sql", BASE.key}))):
        assert routing.resolve("a").cards == (0,)
        assert routing.resolve(None).cards == (2,)
        for unit in map(str, range(20)):
            route = drawn(routing, unit)
            assert route.exposure is not None
            assert route.cards == ((0,) if route.exposure.arm == "a" else (1,))
    by_id = whole.resolve("b").model_id
    assert whole.seen_by(frozenset({by_id})).resolve(by_id).cards == (1,)
    assert whole.resolve("other").cards == ()
