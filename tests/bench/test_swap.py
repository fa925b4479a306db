"""The judge of the storm finds each kind of broken promise, and its groups are a storm."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from stacked.bench.asking import apart
from stacked.bench.check import BASE, Answer, Refusal, Version, Violation, judge
from stacked.bench.clients import Mix, Traffic
from stacked.bench.figures import gaps_within, quantile
from stacked.bench.groups import config_tree, group_members, make_storm, pool_members
from stacked.bench.storm import Seen, Settings, _goes_on
from stacked.bench.updates import Update, begins_of
from stacked.config import Config, parse
from stacked.core import Adapter, Digest, Member, model_id_of
from stacked.errors import ConfigInvalid
from stacked.groups.swap import diff

# Generation 1 (group 0) serves until the switch away is acknowledged at 12; the update to
# generation 2 (group 1) was asked for at 10. `x` changes its weights, `y` is in group 0 alone.
VERSIONS = (
    Version(1, 0, {"x": "A", "y": "B", "base": BASE}, began=0.0, replaced=12.0),
    Version(2, 1, {"x": "B", "base": BASE}, began=10.0),
)
TOKENS = {"A": (1, 2, 3, 4), "B": (5, 6, 7, 8), BASE: (1, 9, 9, 9)}
REFERENCES = {(group, digest, 0): tokens for group in (0, 1) for digest, tokens in TOKENS.items()}
OLD = Answer("x", 0, 5.0, 6.0, "A", 1, TOKENS["A"], True, "x")
NEW = replace(OLD, sent=13.0, ended=14.0, digest="B", generation=2, tokens=TOKENS["B"])


def violations(*seen: Answer | Refusal) -> list[Violation]:
    answers = [each for each in seen if isinstance(each, Answer)]
    refusals = [each for each in seen if isinstance(each, Refusal)]
    return judge(answers, refusals, VERSIONS, REFERENCES)


def kinds(*seen: Answer | Refusal) -> list[str]:
    return [each.kind for each in violations(*seen)]


def test_right_answers_of_each_version_are_no_violation() -> None:
    base = replace(OLD, key="base", said_key="base", digest=BASE, tokens=TOKENS[BASE])
    assert kinds(OLD, NEW, base) == []


@pytest.mark.parametrize("sent", [5.0, 9.0, 11.9])
def test_old_version_may_finish_long_after_the_switch(sent: float) -> None:
    assert kinds(replace(OLD, sent=sent, ended=500.0)) == []


def test_new_version_may_answer_before_its_switch_is_acknowledged() -> None:
    assert kinds(replace(NEW, sent=9.0, ended=11.0)) == []


def test_old_version_after_the_acknowledged_switch_is_stale() -> None:
    found = violations(replace(OLD, sent=12.5, ended=13.0))
    assert [each.kind for each in found] == ["stale"]
    assert "0.500 s after" in found[0].text


def test_version_that_was_not_asked_for_yet_is_dead() -> None:
    assert kinds(replace(NEW, sent=8.0, ended=9.0)) == ["dead"]


def test_generation_that_never_was_is_dead() -> None:
    assert kinds(replace(OLD, generation=7)) == ["dead"]


def test_tokens_of_another_adapter_are_wrong_and_it_is_named() -> None:
    found = violations(replace(OLD, tokens=TOKENS["B"]))
    assert [each.kind for each in found] == ["wrong"]
    assert "what B answers" in found[0].text


def test_base_in_place_of_an_adapter_is_wrong() -> None:
    assert kinds(replace(OLD, tokens=TOKENS[BASE])) == ["wrong"]


def test_tokens_of_nobody_are_wrong() -> None:
    assert kinds(replace(OLD, tokens=(7, 7, 7, 7))) == ["wrong"]


def test_last_token_alone_is_enough_to_be_mixed() -> None:
    assert kinds(replace(OLD, tokens=(1, 2, 3, 8))) == ["mixed"]


def test_answer_that_begins_as_one_version_and_ends_as_another_is_mixed() -> None:
    assert kinds(replace(OLD, tokens=(1, 2, 7, 8))) == ["mixed"]


def test_answer_that_begins_as_the_other_version_is_mixed() -> None:
    assert kinds(replace(OLD, tokens=(5, 6, 3, 4))) == ["mixed"]


@pytest.mark.parametrize("tokens", [(), (1, 2, 3), (1, 2, 3, 4, 4)])
def test_whole_answer_of_another_length_is_a_violation(tokens: tuple[int, ...]) -> None:
    assert len(kinds(replace(OLD, tokens=tokens))) == 1


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_answer_that_its_client_cut_is_a_beginning_of_the_right_one(count: int) -> None:
    assert kinds(replace(OLD, whole=False, tokens=TOKENS["A"][:count])) == []


def test_answer_that_its_client_cut_is_compared_too() -> None:
    assert kinds(replace(OLD, whole=False, tokens=(1, 2, 9))) == ["mixed"]
    assert kinds(replace(OLD, whole=False, tokens=(5, 6))) == ["wrong"]


def test_headers_that_name_another_model_are_a_violation() -> None:
    assert kinds(replace(OLD, digest="B", tokens=TOKENS["B"])) == ["key"]
    assert kinds(replace(OLD, said_key="y")) == ["key"]
    assert kinds(replace(NEW, key="y", said_key="y")) == ["key"]


@pytest.mark.parametrize("code", ["KeyUnknown", "KeyRemoved"])
def test_key_that_some_possible_version_lacks_may_be_refused_as_absent(code: str) -> None:
    assert kinds(Refusal("y", 11.0, 11.5, code, "")) == []
    assert kinds(Refusal("y", 13.0, 13.5, code, "")) == []


@pytest.mark.parametrize("code", ["KeyUnknown", "KeyRemoved"])
def test_key_that_every_possible_version_has_may_not_be_refused(code: str) -> None:
    assert kinds(Refusal("y", 5.0, 6.0, code, "")) == ["error"]
    assert kinds(Refusal("x", 11.0, 11.5, code, "")) == ["error"]
    assert kinds(Refusal("base", 13.0, 13.5, code, "")) == ["error"]


@pytest.mark.parametrize("code", ["ReadError", "StreamCut", "EngineDead", "HTTP500", "NotReady"])
def test_every_other_error_is_a_violation_even_for_an_absent_key(code: str) -> None:
    assert kinds(Refusal("y", 13.0, 13.5, code, "")) == ["error"]


def test_references_are_those_of_the_version_that_answered() -> None:
    other = {**REFERENCES, (1, "B", 0): (5, 6, 7, 9)}
    assert [each.kind for each in judge([NEW], [], VERSIONS, other)] == ["wrong"]


def test_answers_that_two_models_share_are_counted() -> None:
    assert apart(REFERENCES) == (3, 3)
    assert apart({**REFERENCES, (0, "C", 0): TOKENS["A"]}) == (2, 4)


# -- groups ---------------------------------------------------------------------------------


def config(adapters: int, directory: Path = Path("/adapters")) -> Config:
    members = [{"key": f"k{at}", "source": f"{directory}/{at}"} for at in range(adapters)]
    tree = {"base": {"model": "/base"}, "group": {"members": members}}
    return parse(tree, where="test", directory=Path("/"))


def member(key: str, at: int) -> Member:
    digest = Digest(f"sha256:{at:064x}")
    return Member(model_id_of(digest), Adapter(digest, Path(), 0, 8, ()), key)


@pytest.mark.parametrize(("adapters", "groups"), [(4, 4), (5, 4), (6, 4), (8, 4), (9, 5), (12, 6)])
def test_groups_add_remove_rename_and_change_weights(adapters: int, groups: int) -> None:
    storm = make_storm(config(adapters), groups)
    assert len({tuple(sorted(group.items())) for group in storm.groups}) == groups
    assert storm.lasting
    assert storm.passing
    members = [[member(key, at) for key, at in group.items()] for group in storm.groups]
    for number, before in enumerate(members):
        after = members[(number + 1) % groups]
        found = {change.kind for change in diff(before, after)}
        assert {"added", "removed", "changed"} <= found
    for one, two in pairwise(members):
        assert "renamed" in {change.kind for change in diff(one, two)}


def test_too_few_adapters_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="has 3 adapters"):
        make_storm(config(3), 4)
    with pytest.raises(ConfigInvalid, match="there are 5 groups"):
        make_storm(config(4), 5)


def test_second_key_of_the_same_files_adds_no_adapter() -> None:
    four = config(4)
    twice = (*four.group.members, four.group.members[0].model_copy(update={"key": "again"}))
    group = four.group.model_copy(update={"members": twice})
    assert len(make_storm(four.model_copy(update={"group": group}), 4).pool) == 4


def test_config_of_a_group_is_a_config_on_loopback() -> None:
    given = config(4)
    storm = make_storm(given, 4)
    for members in (pool_members(storm), group_members(storm, storm.groups[1])):
        tree = parse(config_tree(given, members), where="test", directory=Path("/"))
        assert tree.server.host == "127.0.0.1"
        assert tree.server.adapter_roots == ("/adapters",)
        assert [(m.key, m.source) for m in tree.group.members] == [
            (key, entry.source) for key, entry in members
        ]


def test_storm_ends_at_both_numbers_or_where_an_update_fails() -> None:
    settings = Settings(updates=2, clients=1, groups=4, responses=3, max_tokens=4)
    traffic = Traffic("http://127.0.0.1:1", Mix("base", ("x",), (), 4), 1)
    done = Update(1, 0.0, 1.0, 2.0)

    def goes_on(updates: int, whole: int, failures: int = 0) -> bool:
        traffic.counts["plain"] = whole
        failed = [Violation("update", "")] * failures
        return _goes_on(settings, Seen(traffic, [], [done] * updates, failed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Traffic, "failed", False)
        assert goes_on(1, 3)
        assert goes_on(2, 2)
        assert not goes_on(2, 3)
        assert not goes_on(1, 1, failures=1)
        assert not goes_on(10, 0)


# -- figures --------------------------------------------------------------------------------


def test_phases_last_from_their_first_line_to_the_next_phases() -> None:
    steps = [{}, *({"step": name} for name in ("PLAN", "STAGE", "STAGE", "VERIFY", "DONE"))]
    logs = [
        {"message": "m", "timestamp": f"2026-01-01T00:00:0{at}.000Z", **step}
        for at, step in enumerate(steps)
    ]
    done = Update(1, 0.0, 1.0, 2.0, begins_of(logs))
    assert done.phases == {
        "planning": 1.0,
        "staging": 2.0,
        "verifying": 1.0,
    }


def test_gap_counts_where_it_touches_the_window() -> None:
    arrivals = [[0.0, 1.0, 4.0, 4.5], [10.0, 11.0]]
    assert gaps_within(arrivals, (2.0, 4.2)) == [3.0, 0.5]
    assert gaps_within(arrivals, (2.0, 3.0)) == [3.0]
    assert gaps_within(arrivals, (5.0, 9.0)) == []


def test_quantile_is_one_of_the_values() -> None:
    values = [float(at) for at in range(1, 101)]
    assert quantile(values, 0.99) == 99.0
    assert quantile(values, 0.5) == 50.0
    assert quantile([3.0], 0.99) == 3.0
