"""What a request's schema, expression or grammar may cost, and where in a request it is found."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.errors import GrammarTooCostly
from stacked.serving.grammars import check_expression, check_grammars

COSTLY = "(.{0,20}[a-z]{3}){0,8}"


@pytest.mark.parametrize(
    "expression",
    [
        r"^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}$",
        r"(\d{1,3}\.){3}\d{1,3}",
        r"([a-z]+,)*[a-z]+",
        r"(\w+ )*\w+",
        r"^[\w.+-]+@[\w-]+\.[\w.-]+$",
        r"(foo|barbaz){1,50}",
        r"(abc){1,50}([0-9]{2})*",
        r".{0,5000}",
        r"[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){1,7}",
        r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})",
        r"https?://[^\s/]+(/[^\s/]*)*",
        r'"(\\.|[^"\\])*"',
        r"(- [^\n]+\n){1,20}",
        r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}",
        r"[a-z]{1,50}-[a-z]{1,50}( [0-9]{1,20})?",
        r"[A-Za-z ]{1,50}[0-9]{1,20}",
        r"(?<year>\d{4})|(?P<name>\p{L}+)|(?i:x)",
        r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?",
        *(
            "",
            "(",
            ")",
            "[",
            "\\",
            "a{,3}",
            "(((",
            "|",
            "{",
            "*",
            "[]",
            "[^]",
            "a{9}{2}",
            "[[a-z]--x]+",
        ),
    ],
)
def test_an_expression_that_reads_a_text_in_few_ways_is_passed_on(expression: str) -> None:
    check_expression(expression)


@pytest.mark.parametrize(
    "expression",
    [
        COSTLY,
        "(a{1,100}){1,100}",
        "((a{1,30}){1,30}){1,10}",
        "(a+)+(a+)+b",
        "(a*)*",
        r"(\w+\s*)+!",
        "(?:(?:a+){2}){9}",
        "(.{2}|[^,]){1,50}.{0,400}",
        "[a-z]{1,50}[a-z0-9]{1,20}",
        ".*x{0,99}",
        "((.{0,99}){4}){4}",
        "(((a+){0,3}){2}){0,3}",
        "([a-z]{0,3}){1,50}",
        "([^,]?){1,50}",
        "([^,]{2}){0,400}",
        "([a-z]|[a-z]{2}){1,50}",
        "(a|){200}",
        "(.*,)*x",  # the engine's `.` takes commas, and line ends too
        "x" * 3000,
        "(" * 100 + ")" * 100,
    ],
)
def test_an_expression_that_reads_a_text_in_very_many_ways_is_refused(expression: str) -> None:
    with pytest.raises(GrammarTooCostly):
        check_expression(expression)


@given(st.text(alphabet="ab.()[]{}*+?|\\^$,019-:<>=!PpLw", max_size=40))
def test_any_text_is_an_expression_or_refused(expression: str) -> None:
    with contextlib.suppress(GrammarTooCostly):
        check_expression(expression)


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
PATTERN = {"type": "object", "properties": {"a": {"type": "string", "pattern": COSTLY}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PATTERN}}
TAG = {"structures": [{"begin": "<", "schema": PATTERN, "end": ">"}], "triggers": ["<"]}


@pytest.mark.parametrize(
    "tree",
    [
        {"structured_outputs": {"regex": COSTLY}},
        {"structured_outputs": {"whitespace_pattern": COSTLY, "json": {}}},
        {"structured_outputs": {"json": PATTERN}},
        {"structured_outputs": {"json": json.dumps(PATTERN)}},
        {"structured_outputs": {"json": {"patternProperties": {COSTLY: {}}}}},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
        {"structured_outputs": {"grammar": 'root ::= s "!"\ns ::= s s | "a"'}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": PATTERN}}},
        {"response_format": {"type": "structural_tag", "format": {"pattern": COSTLY}}},
        {"response_format": {"type": "structural_tag", "format": {"type": "star"}}},
        {"text": {"format": {"type": "json_schema", "schema": PATTERN}}},
        {"output_config": {"format": {"schema": PATTERN}}},
        {"tools": [TOOL]},
        {"tools": [{"name": "f", "input_schema": PATTERN}]},
        {"sampling_params": {"structured_outputs": {"regex": COSTLY}}},
        {"chat_request": {"response_format": {"json_schema": {"schema": PATTERN}}}},
    ],
)
def test_it_is_found_wherever_a_request_may_bring_it(tree: dict[str, Any]) -> None:
    with pytest.raises(GrammarTooCostly):
        check_grammars(tree)


def wide(count: int, required: int = 0) -> dict[str, Any]:
    names = [f"p{number}" for number in range(count)]
    properties = {name: {"type": "string"} for name in names}
    return {"type": "object", "properties": properties, "required": names[:required]}


def union(count: int, of: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [of] * count}


def array(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def kind(number: int) -> dict[str, Any]:
    """One of a discriminated union."""
    return {"type": "object", "properties": {"kind": {"const": f"k{number}"}, "a": SCHEMA}}


def lengths(count: int) -> dict[str, Any]:
    """Texts of different lengths, and many that are the same or short."""
    texts = [{"type": "string", "maxLength": 100 + number} for number in range(count)]
    return {"items": [*texts, *texts, *({"maxLength": number} for number in range(16))]}


TEXT = {"type": "string", "pattern": "a{1,400}"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = array(schema)
    return schema


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (wide(500), wide(501)),
        (wide(3000, required=2600), wide(4500, required=4400)),
        (union(64, SCHEMA), union(65, SCHEMA)),
        (union(6, array(union(9, SCHEMA))), union(8, array(union(8, SCHEMA)))),
        ({"anyOf": [kind(number) for number in range(500)]}, union(65, kind(1))),
        ({"items": [union(1, SCHEMA)] * 100}, {"items": [union(2, SCHEMA)] * 33}),
        (lengths(32), lengths(33)),
        ({"pattern": "".join(f"a{{{n + 17}}}" for n in range(32))}, {"items": [lengths(32), TEXT]}),
        (deep(60), deep(2000)),
    ],
)
def test_a_schema_has_bounds(few: dict[str, Any], many: dict[str, Any]) -> None:
    check_grammars({"structured_outputs": {"json": few}, "tools": [{"parameters": SCHEMA}]})
    with pytest.raises(GrammarTooCostly, match="at most"):
        check_grammars({"structured_outputs": {"json": many}})


def test_expressions_are_bounded_together() -> None:
    patterns = [{"pattern": f"{number}" + "a?" * 1000} for number in range(8)]
    check_grammars({"tools": patterns})
    with pytest.raises(GrammarTooCostly, match="in its regular expressions"):
        check_grammars({"tools": [*patterns, {"pattern": "b" * 500}]})


def test_what_a_schema_has_as_data_is_not_read() -> None:
    data = {"pattern": COSTLY, "grammar": "x"}
    schema = {"default": data, "enum": [data], "properties": {"pattern": {"const": data}}}
    check_grammars({"structured_outputs": {"json": schema}, "messages": [data], "regex": COSTLY})


def test_alternatives_that_begin_differently_are_many() -> None:
    """As pydantic writes fields that may be absent, and a value of any kind."""
    optional = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    value = {"anyOf": [{"type": kind} for kind in ("string", "object", "array", "number", "null")]}
    check_grammars({"structured_outputs": {"json": {"items": [optional, value] * 200}}})


@pytest.mark.parametrize("odd", [None, 5, "x", [], [[]], [5], {"json": 5}, {"properties": [1]}])
def test_what_has_another_type_is_vllm_s_to_refuse(odd: Any) -> None:
    fields = ("structured_outputs", "response_format", "tools", "text", "sampling_params")
    check_grammars(dict.fromkeys(fields, odd))
    check_grammars({"tools": [{"required": odd, "properties": {"a": odd}, "anyOf": odd}]})
