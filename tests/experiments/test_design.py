"""What a group may declare of experiments, as metadata and in its file; where a fault stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacked.config import Design, parse
from stacked.errors import ConfigInvalid, GroupInvalid

SQL = {"key": "sql", "arms": [{"key": "a", "weight": 60}, {"key": "b", "weight": 40}]}


def design(*experiments: dict[str, Any]) -> Design:
    return Design.of({"stacked.experiments": json.dumps(experiments), "other": "{"})


def arms(*keys: str, **more: Any) -> dict[str, Any]:
    return {"key": "sql", "arms": [{"key": key} for key in keys], **more}


def test_metadata_and_design_are_the_same() -> None:
    found = design({**SQL, "unit": "user", "salt": "s"})
    assert str(found.experiments[0]) == "60/40"
    assert Design.of(found.as_metadata()) == found
    assert Design().as_metadata() == {}
    assert found.check({"a", "b", None}, "STACKED") is found


@pytest.mark.parametrize(
    ("experiments", "words"),
    [
        ("[", "metadata stacked.experiments is no JSON"),
        ("{}", "metadata stacked.experiments: "),
        ('[{"key": "sql"}]', "metadata stacked.experiments.0.arms: Field required"),
        ([arms()], "stacked.experiments.0.arms: "),
        ([arms("a", unit="cookie")], "stacked.experiments.0.unit: "),
        ([arms("a", "a")], "stacked.experiments.0: .*arm 'a' is there twice"),
        ([{"key": "sql", "arms": [{"key": "a", "weight": 0}]}], "0: .*every arm has weight 0"),
        ([{"key": "sql", "arms": [{"key": "a", "weight": -1}]}], "0.arms.0.weight: "),
        ([{"key": "sql", "arms": [{"key": "a", "weight": "nan"}]}], "0.arms.0.weight: "),
        ([{**arms("a"), "typo": 1}], "stacked.experiments.0.typo: "),
        ([arms("a")] * 51, "stacked.experiments: .*50 items"),
        ([arms(*(f"k{at}" for at in range(21)))], "stacked.experiments.0.arms: .*20 items"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(experiments: Any, words: str) -> None:
    text = experiments if isinstance(experiments, str) else json.dumps(experiments)
    with pytest.raises(GroupInvalid, match=words):
        Design.of({"stacked.experiments": text})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (design(arms("a", "c")), r"experiments\.0\.arms\.1\.key: no model of the group .* 'c'"),
        (design(arms("a"), arms("b")), r"experiments\.1\.key: 'sql' is another model's key"),
        (design({**arms("b"), "key": "a"}), r"experiments\.0\.key: 'a' is another model's key"),
        (
            design(arms("a"), {**arms("sql"), "key": "more"}),
            r"experiments\.1\.arms\.0\.key: no model of the group has key 'sql'",
        ),
    ],
)
def test_a_key_means_one_thing(found: Design, words: str) -> None:
    with pytest.raises(GroupInvalid, match=f"metadata stacked.{words}"):
        found.check({"a", "b"}, "STACKED")


def test_models_that_read_their_bodies_themselves_have_no_unit_there() -> None:
    found = design(arms("a", unit="user"))
    assert found.check({"a"}, "STACKED") is found
    with pytest.raises(GroupInvalid, match=r"experiments\.0\.unit: .*HETEROGENEOUS"):
        found.check({"a"}, "HETEROGENEOUS")


def test_a_file_is_checked_where_it_is_read() -> None:
    def read(*experiments: dict[str, Any]) -> Any:
        members = [{"key": key, "source": f"/{key}"} for key in "ab"]
        group = {"members": members, "experiments": [*experiments]}
        tree = {"base": {"model": "/base"}, "group": group}
        return parse(tree, where="f.yaml", directory=Path("/"))

    assert read(arms("a", "base")).group.experiments[0].arms[1].key == "base"
    for wrong, words in (
        (arms("c"), r"group\.experiments\.0\.arms\.0\.key: no model of the group has key 'c'"),
        ({**arms("a"), "key": "base"}, r"group\.experiments\.0\.key: 'base' is another"),
        (arms("a", "a"), "arm 'a' is there twice"),
    ):
        with pytest.raises(ConfigInvalid, match=words):
            read(wrong)


def test_shadows_are_of_keys_and_lead_to_models() -> None:
    pairs = [("sql", "a"), ("a", "b"), ("a", "base"), ("a", "a")]
    shadow = [{"key": key, "to": to, "percent": 20} for key, to in pairs]
    found = Design.of({**design(arms("a")).as_metadata(), "stacked.shadow": json.dumps(shadow)})
    assert Design.of(found.as_metadata()) == found
    assert found.check({"a", "b", "base"}, "STACKED") is found
    assert not found.seen_by({"sql", "a"}).shadow


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("c", "a")], r"shadow\.0\.key: no model of the group has key 'c'"),
        ([("a", "b"), ("a", "c")], r"shadow\.1\.to: no model of the group has key 'c'"),
        ([("sql", "a"), ("a", "sql")], r"shadow\.1\.to: no model of the group has key 'sql'"),
        ([("a", "b"), ("a", "b")], r"shadow\.1: 'a' is already copied to 'b'"),
    ],
)
def test_shadows_of_or_to_nothing_are_refused(pairs: list[tuple[str, str]], words: str) -> None:
    shadow = [{"key": key, "to": to, "percent": 20} for key, to in pairs]
    found = Design.model_validate({"experiments": [arms("a")], "shadow": shadow})
    with pytest.raises(GroupInvalid, match=f"metadata stacked.{words}"):
        found.check({"a", "b"}, "STACKED")
    with pytest.raises(GroupInvalid, match=r"shadow\.0: the bodies of a HETEROGENEOUS group"):
        found.check({"a", "b"}, "HETEROGENEOUS")


@pytest.mark.parametrize("percent", [0, -1, 100.1, "nan"])
def test_a_part_is_above_nothing_and_at_most_all(percent: Any) -> None:
    shadow = [{"key": "a", "to": "b", "percent": percent}]
    with pytest.raises(GroupInvalid, match=r"stacked\.shadow\.0\.percent"):
        Design.of({"stacked.shadow": json.dumps(shadow)})


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ("[", "metadata stacked.gpus is no JSON"),
        ('{"sql": []}', "metadata stacked.gpus.sql: "),
        ('{"sql": 0}', "metadata stacked.gpus.sql: "),
        ('{"sql": [-1]}', "metadata stacked.gpus.sql.0: "),
        ('{"sql": ["0"]}', "metadata stacked.gpus.sql.0: "),
        ('{"sql": [true]}', "metadata stacked.gpus.sql.0: "),
        (json.dumps({"sql": [0] * 65}), "metadata stacked.gpus.sql: "),
    ],
)
def test_cards_that_are_none_are_refused_with_their_place(gpus: str, words: str) -> None:
    with pytest.raises(GroupInvalid, match=words):
        Design.of({"stacked.gpus": gpus})


def test_keys_are_pinned_to_cards_that_are_there() -> None:
    found = Design.of({"stacked.gpus": '{"sql": [1], "base": [0, 2]}'})
    assert found.gpus == {"sql": (1,), "base": (0, 2)}
    assert Design.of(found.as_metadata()) == found
    assert found.check({"sql", "base", "other"}, "STACKED") is found
    assert found.seen_by({"sql"}).gpus == found.gpus
    found.check_cards(3)
    found.check_cards(None)
    with pytest.raises(GroupInvalid, match="'base' is pinned to card 2, and this server has 2,"):
        found.check_cards(2)
    with pytest.raises(GroupInvalid, match="'sql' is pinned to card 1, and this server has none"):
        found.check_cards(0)
    with pytest.raises(GroupInvalid, match=r"stacked\.gpus: no model of the group has key 'base'"):
        found.check({"sql"}, "HETEROGENEOUS")


def test_a_models_own_cards_count_where_its_group_says_none() -> None:
    group = Design.of({"stacked.gpus": '{"sql": [1]}'})
    assert group.with_cards({"sql": "[0]", "fr": "[2]"}).gpus == {"sql": (1,), "fr": (2,)}
    with pytest.raises(GroupInvalid, match=r"stacked\.gpus of model 'fr' is no JSON"):
        group.with_cards({"fr": "card 2"})
    with pytest.raises(GroupInvalid, match=r"stacked\.gpus\.fr: "):
        group.with_cards({"fr": '"2"'})
