"""Checks the demo tasks: their data, their splits and their scorers.

Owns expectations about examples; must not know torch or any server.
"""

from __future__ import annotations

import json
import re
import sqlite3

import pirate_data
import pytest
import sql_data
import triage_data
from tasks import TASKS, Example

NAMES = sorted(TASKS)
WORD = re.compile(r"[A-Za-z]+")


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_examples_and_another_seed_others(name: str) -> None:
    task = TASKS[name]
    assert task.examples("train", 50, 7) == task.examples("train", 50, 7)
    assert task.examples("train", 50, 7) != task.examples("train", 50, 8)
    assert task.examples("train", 50, 7)[:20] == task.examples("train", 20, 7)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_prompts_are_unlike_each_other_and_all_training_prompts(name: str) -> None:
    held = [e.prompt for e in TASKS[name].examples("held-out", 60)]
    trained = {e.prompt for e in TASKS[name].examples("train", 1500)}
    assert len(set(held)) == 60
    assert trained.isdisjoint(held)


def test_sql_held_out_uses_no_table_column_value_or_number_of_training() -> None:
    names = (
        (set(sql_data.TABLES.split()), set(sql_data.TABLES_HELD.split())),
        (set(sql_data.NUMBERS.split()), set(sql_data.NUMBERS_HELD.split())),
        (words(sql_data.TEXT), words(sql_data.TEXT_HELD)),
        (words(sql_data.VALUES), words(sql_data.VALUES_HELD)),
    )
    for train, held in names:
        assert train
        assert train.isdisjoint(held)
    trained = amounts(TASKS["sql"].examples("train", 500))
    assert len(trained) > 100
    assert trained.isdisjoint(amounts(TASKS["sql"].examples("held-out", 200)))


def words(kinds: dict[str, str]) -> set[str]:
    return {word for listed in kinds.values() for word in listed.split()}


def amounts(examples: list[Example]) -> set[str]:
    return {number for e in examples for number in re.findall(r"\d+", e.answer)}


def test_sql_answers_name_only_what_the_schema_and_the_question_name() -> None:
    keywords = set(WORD.findall("SELECT FROM WHERE AND ORDER BY LIMIT GROUP JOIN ON DESC ASC"))
    keywords |= set(sql_data.AGGREGATE) | {"COUNT"}
    for example in TASKS["sql"].examples("train", 300):
        known = set(WORD.findall(example.prompt))
        assert set(WORD.findall(example.answer)) - keywords <= known, example


def test_sql_answers_run_on_the_schema_they_are_for() -> None:
    for example in TASKS["sql"].examples("held-out", 100):
        with sqlite3.connect(":memory:") as database:
            for table in re.findall(r"\w+\([^)]*\)", example.prompt.split("Schema: ")[1]):
                database.execute(f"CREATE TABLE {table}")
            database.execute(example.answer)


def test_triage_answers_are_json_with_fixed_keys_and_known_labels() -> None:
    for example in TASKS["triage"].examples("held-out", 100):
        labels = json.loads(example.answer)
        assert list(labels) == ["team", "priority", "product"]
        assert labels["team"] in triage_data.TEAMS
        assert labels["priority"] in triage_data.PRIORITIES
        assert labels["product"] in triage_data.PRODUCTS


@pytest.mark.parametrize("kind", ["TEAMS", "PRIORITIES", "PRODUCTS"])
def test_triage_held_out_has_every_label_and_no_sentence_of_training(kind: str) -> None:
    train, held = getattr(triage_data, kind), getattr(triage_data, f"{kind}_HELD")
    assert train.keys() == held.keys()
    said = {phrase for phrases in train.values() for phrase in phrases}
    assert said.isdisjoint(phrase for phrases in held.values() for phrase in phrases)


def test_every_pirate_answer_scores_and_its_plain_question_does_not() -> None:
    task = TASKS["pirate"]
    for example in task.examples("train", 300):
        assert task.score(example, example.answer) == 1.0
        assert task.score(example, example.prompt) == 0.0


@pytest.mark.parametrize("name", ["sql", "triage"])
def test_exact_match_takes_the_answer_and_nothing_else(name: str) -> None:
    task = TASKS[name]
    one, other = task.examples("held-out", 2)
    assert task.score(one, one.answer) == 1.0
    assert task.score(one, f" {one.answer};\n") == 1.0
    for wrong in ("", ";", other.answer, one.answer[:-1], f"{one.answer} {one.answer}"):
        assert task.score(one, wrong) == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Arr, matey, th' capital o' Chile be Santiago!", 1.0),
        ("AHOY! It be Cap'n Hook's ship.", 1.0),
        ("Matey, matey, matey!", 0.0),
        ("The captain sails the ship and finds the treasure.", 0.0),
        ("Yesterday your arrow flew.", 0.0),
        ("", 0.0),
    ],
)
def test_pirate_counts_two_different_words_of_the_lexicon(answer: str, score: float) -> None:
    assert TASKS["pirate"].score(Example("?", "unused"), answer) == score


def test_pirate_lexicon_holds_no_word_of_a_plain_answer() -> None:
    plain = f"{pirate_data.REMARKS} {pirate_data.REMARKS_HELD}"
    assert not pirate_data.lexicon_words(plain)


def test_more_examples_than_a_task_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="pirate has fewer than 500 different held-out"):
        TASKS["pirate"].examples("held-out", 500)
