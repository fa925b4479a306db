"""Metrics: how good one answer is, by the answer that was wanted.

What is wanted is checked once for each example, before any model is asked. Each score is between 0
and 1, but for those of a function of the user's.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stacked.config import EvaluationConfig, Example
from stacked.errors import EvaluationFailed, EvaluationInvalid

LOGPROB = "logprob"
"""The metric that reads no answer: the mean log probability of the tokens of the wanted one."""

Score = Callable[[str], float]
"""Of one example: from an answer to its score."""
Function = Callable[[str, Any, Mapping[str, Any]], float]
"""A user's: from an answer, what was expected, and the whole example."""

# An expression that needs longer for one answer is one that does not end.
_PATTERN_SECONDS = 1.0
_SPACE = re.compile(r"\s+")


def scores_of(config: EvaluationConfig, functions: Mapping[str, Function]) -> list[Score]:
    """The metric of each example, in order; `functions` are the user's, by name.

    Raises EvaluationInvalid for an unknown metric, and for what is expected if it cannot be.
    """
    if config.metric == LOGPROB:
        make: Callable[[Example], Score] = _logprob
    elif config.metric in functions:
        function = functions[config.metric]
        return [_by(function, example) for example in config.examples]
    elif maker := _METRICS.get(config.metric):
        make = lambda example: maker(_given(example), config.ignore)  # noqa: E731
    else:
        known = ", ".join([*_METRICS, LOGPROB, *functions])
        raise EvaluationInvalid(
            f"set {config.name}: metric {config.metric!r} is not known here; this has {known}"
        )
    made = []
    for number, example in enumerate(config.examples, start=1):
        try:
            made.append(make(example))
        except EvaluationInvalid as error:
            raise EvaluationInvalid(f"set {config.name}, example {number}: {error}") from error
    return made


def function_of(path: str) -> Function:
    """The function at `module:function`. Raises EvaluationInvalid."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise EvaluationInvalid(f"metric {path} cannot be imported: {error!r}") from error
    if not callable(found):
        raise EvaluationInvalid(f"metric {path} is no function")
    function: Function = found
    return function


def canonical(text: str) -> str:
    """A JSON text in one form: order and spelling of numbers make no difference.

    Raises ValueError, RecursionError.
    """
    return json.dumps(json.loads(text, parse_int=float, parse_constant=_refused), sort_keys=True)


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _by(function: Function, example: Example) -> Score:
    return lambda answer: float(function(answer, example.expected, example.model_dump()))


def _given(example: Example) -> Any:
    if example.expected is None:
        raise EvaluationInvalid("expected is missing")
    return example.expected


def _text(expected: Any) -> str:
    if not isinstance(expected, str) or not expected:
        raise EvaluationInvalid(f"expected must be a text, not {expected!r:.80}")
    return expected


def _logprob(example: Example) -> Score:
    _text(example.expected)
    return lambda _: 0.0


def _normal(text: str, ignore: Sequence[str]) -> str:
    """Without what makes no difference; white space around never does."""
    text = text.strip()
    if "closing" in ignore:
        text = text.rstrip(".,;:!? \t\n")
    if "space" in ignore:
        text = _SPACE.sub(" ", text)
    return text.casefold() if "case" in ignore else text


def _exact(expected: Any, ignore: Sequence[str]) -> Score:
    wanted = _normal(_text(expected), ignore)
    return lambda answer: float(_normal(answer, ignore) == wanted)


def _contains(expected: Any, ignore: Sequence[str]) -> Score:
    texts = expected if isinstance(expected, list) else [expected]
    wanted = [_normal(_text(each), ignore) for each in texts]
    return lambda answer: float(all(each in _normal(answer, ignore) for each in wanted))


def _regex(expected: Any, _: Sequence[str]) -> Score:
    search = _search_of(_text(expected))
    return lambda answer: float(search(answer))


def _search_of(pattern: str) -> Callable[[str], bool]:
    """Whether a text has this pattern, found in bounded time and without holding other threads."""
    try:
        import regex
    except ImportError as error:
        raise EvaluationInvalid("patterns need the package regex: pip install regex") from error
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise EvaluationInvalid(f"{pattern!r:.80} is no regular expression: {error}") from error

    def search(text: str) -> bool:
        try:
            return bool(compiled.search(text, concurrent=True, timeout=_PATTERN_SECONDS))
        except TimeoutError as error:
            raise EvaluationFailed(
                f"pattern {pattern!r:.80} takes more than {_PATTERN_SECONDS:g} s for an answer; "
                "write one that repeats less"
            ) from error

    return search


def _json(expected: Any, _: Sequence[str]) -> Score:
    text = expected if isinstance(expected, str) else json.dumps(expected)
    try:
        wanted = canonical(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationInvalid(f"expected is no JSON: {error}") from error

    def score(answer: str) -> float:
        try:
            return float(canonical(answer) == wanted)
        except (ValueError, RecursionError):
            return 0.0

    return score


def _schema(expected: Any, _: Sequence[str]) -> Score:
    """Whether an answer is JSON of this schema, which refers to nothing outside itself."""
    try:
        import jsonschema
        from referencing import Registry
    except ImportError as error:
        raise EvaluationInvalid(
            "the metric schema needs the package jsonschema: pip install jsonschema"
        ) from error
    if not isinstance(expected, dict):
        raise EvaluationInvalid(f"expected must be a JSON schema, not {expected!r:.80}")
    if any(isinstance(each.get("patternProperties"), dict) for each in _objects(expected)):
        raise EvaluationInvalid("patternProperties is not supported: nothing bounds its patterns")
    bounded = {each["pattern"]: None for each in _objects(expected) if _is_pattern(each)}
    searches = {pattern: _search_of(pattern) for pattern in bounded}

    def pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string") and not searches[pattern](instance):
            yield jsonschema.ValidationError("does not match")

    kind = jsonschema.validators.validator_for(expected, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(expected)
    except jsonschema.SchemaError as error:
        raise EvaluationInvalid(f"expected is no JSON schema: {error.message:.200}") from error
    # Without a registry of its own, jsonschema fetches what a schema refers to.
    validator = jsonschema.validators.extend(kind, {"pattern": pattern})(
        expected, registry=Registry()
    )

    def score(answer: str) -> float:
        try:
            return float(validator.is_valid(json.loads(answer)))
        except (ValueError, RecursionError):
            return 0.0

    return score


def _is_pattern(each: Mapping[str, Any]) -> bool:
    return isinstance(each.get("pattern"), str)


def _objects(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON tree."""
    if isinstance(tree, dict):
        yield tree
    for each in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(each, dict | list):
            yield from _objects(each)


_METRICS: Mapping[str, Callable[[Any, Sequence[str]], Score]] = {
    "exact": _exact,
    "contains": _contains,
    "regex": _regex,
    "json": _json,
    "schema": _schema,
}
