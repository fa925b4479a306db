"""Each metric on answers that are right and wrong, and what is refused before a model is asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.config import EvaluationConfig
from stacked.errors import EvaluationFailed, EvaluationInvalid
from stacked.experiments.scores import Function, canonical, function_of, scores_of


def score(
    metric: str,
    expected: Any,
    answer: str,
    *,
    ignore: tuple[str, ...] = (),
    functions: Mapping[str, Function] | None = None,
) -> float:
    tree = {
        "name": "s",
        "metric": metric,
        "ignore": ignore,
        "examples": [{"prompt": "p", "expected": expected, "max_tokens": 7}],
    }
    config = EvaluationConfig.model_validate(tree)
    return scores_of(config, functions or {})[0](answer)


ENDLESS = "^(a|aa)+b$"
SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}$"}, "n": {"type": "integer"}},
    "required": ["id"],
}


@pytest.mark.parametrize(
    ("metric", "expected", "answer", "wanted"),
    [
        ("exact", "SELECT 1", " SELECT 1\n", 1),
        ("exact", "SELECT 1", "select 1", 0),
        ("exact", "SELECT 1", "SELECT 1;", 0),
        ("contains", "cat", "a cat sat", 1),
        ("contains", "cat", "a Cat sat", 0),
        ("contains", ["cat", "sat"], "a cat sat", 1),
        ("contains", ["cat", "dog"], "a cat sat", 0),
        ("regex", r"^\d+ cats?$", "12 cats", 1),
        ("regex", r"^\d+ cats?$", "cats", 0),
        ("json", {"a": [1, 2.0], "b": None}, '{"b": null, "a": [1.0, 2]}', 1),
        ("json", '{"a": 1}', ' {"a": 1} ', 1),
        ("json", {"a": 1}, '{"a": true}', 0),
        ("json", {"a": 1}, "a: 1", 0),
        ("json", {"a": 1}, "NaN", 0),
        ("json", {"a": 1}, "[" * 100_000, 0),
        ("schema", SCHEMA, '{"id": "AB", "n": 3}', 1),
        ("schema", SCHEMA, '{"id": "abc"}', 0),
        ("schema", SCHEMA, '{"n": 3}', 0),
        ("schema", SCHEMA, "no", 0),
    ],
)
def test_builtin_metrics(metric: str, expected: Any, answer: str, wanted: float) -> None:
    assert score(metric, expected, answer) == wanted


@pytest.mark.parametrize(
    ("ignore", "answer", "wanted"),
    [
        (("closing",), "SELECT  a;", 0),
        (("closing", "space"), "SELECT \n a ; ", 1),
        (("case", "space"), "select A", 1),
        ((), "SELECT a", 1),
    ],
)
def test_what_is_ignored(ignore: tuple[str, ...], answer: str, wanted: float) -> None:
    assert score("exact", "SELECT a", answer, ignore=ignore) == wanted


@pytest.mark.parametrize(
    ("metric", "expected", "refusal"),
    [
        ("exact", None, "example 1: expected is missing"),
        ("exact", {"a": 1}, "must be a text"),
        ("contains", "", "must be a text"),
        ("regex", "(", "no regular expression"),
        ("json", "{", "no JSON"),
        ("schema", "{}", "must be a JSON schema"),
        ("schema", {"type": "text"}, "no JSON schema"),
        ("schema", {"patternProperties": {"(a+)+$": {}}}, "patternProperties"),
        ("schema", {"pattern": "("}, "no regular expression"),
        ("bleu", "x", "metric 'bleu' is not known here"),
    ],
)
def test_what_cannot_be_expected_is_refused(metric: str, expected: Any, refusal: str) -> None:
    with pytest.raises(EvaluationInvalid, match=refusal):
        score(metric, expected, "")


@pytest.mark.parametrize(
    ("metric", "expected", "answer"),
    [
        ("regex", ENDLESS, "a" * 60 + "bb"),
        ("schema", {"pattern": ENDLESS}, f'"{"a" * 60}bb"'),
    ],
)
def test_a_pattern_that_does_not_end_is_given_up(metric: str, expected: Any, answer: str) -> None:
    with pytest.raises(EvaluationFailed, match="more than 1 s"):
        score(metric, expected, answer)


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(Exception, match=r"schema\.json"):
        score("schema", {"$ref": "http://127.0.0.1:9/schema.json"}, "{}")


def test_a_function_gets_answer_expected_and_example() -> None:
    seen: list[Any] = []

    def overlap(answer: str, expected: Any, example: Mapping[str, Any]) -> float:
        seen.append((answer, expected, example["max_tokens"], example["prompt"]))
        return 0.25

    assert score("overlap", [1], "yes", functions={"overlap": overlap}) == 0.25
    assert seen == [("yes", [1], 7, "p")]


def test_a_function_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "def half(answer, expected, example): return 0.5\nx = 1"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert function_of("own_metrics:half")("", None, {}) == 0.5
    sys.modules.pop("own_metrics")
    for path in ("own_metrics:none", "own_metrics:x", "nowhere_at_all:half"):
        with pytest.raises(EvaluationInvalid, match=path):
            function_of(path)


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9), lambda t: st.lists(t)))
def test_json_is_itself_and_nothing_else(tree: Any) -> None:
    import json

    text = json.dumps(tree)
    assert canonical(text) == canonical(json.dumps(json.loads(text), indent=2))
    assert canonical(text) != canonical(json.dumps([tree, tree]))
