"""A set of examples put to something that answers, and the verdict on its scores."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from stacked.config import EvaluationConfig
from stacked.errors import EngineDead, EvaluationFailed
from stacked.experiments import evaluation
from stacked.experiments.evaluation import Scored, evaluate, judge, worst
from stacked.experiments.scores import scores_of


def config_of(*examples: dict[str, Any], **more: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"name": "set", "examples": examples, **more})


def texts(*expected: str) -> list[dict[str, Any]]:
    return [{"prompt": f"p{number}", "expected": text} for number, text in enumerate(expected)]


def run(config: EvaluationConfig, ask: Any, functions: Any = None, parallel: int = 2) -> Any:
    scores = scores_of(config, functions or {})
    return asyncio.run(evaluate(config, scores, ask, parallel=parallel))


async def echo(path: str, body: Mapping[str, Any]) -> Any:
    return {"choices": [{"text": body["prompt"]}]}


def test_requests_are_greedy_unless_an_example_or_its_set_says_otherwise() -> None:
    sent: list[Any] = []

    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        sent.append((path, dict(body)))
        return {"choices": [{"text": "yes", "message": {"content": "yes"}}]}

    messages = [{"role": "user", "content": "?"}]
    chat = {"messages": messages, "expected": "yes", "temperature": 0.5}
    config = config_of({"prompt": "p", "expected": "no"}, chat, parameters={"max_tokens": 9})
    assert run(config, ask, parallel=1) == [("yes", 0.0), ("yes", 1.0)]
    assert sent == [
        ("/v1/completions", {"temperature": 0, "max_tokens": 9, "prompt": "p"}),
        (
            "/v1/chat/completions",
            {"temperature": 0.5, "max_tokens": 9, "messages": tuple(messages)},
        ),
    ]


def test_no_more_requests_at_a_time_than_allowed_and_answers_in_order() -> None:
    running, most = 0, 0

    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(1 + int(body["prompt"][1:]) % 3):  # they end in another order
            await asyncio.sleep(0)
        running -= 1
        return await echo(path, body)

    found = run(config_of(*texts(*(f"p{number}" for number in range(30)))), ask, parallel=4)
    assert [each.answer for each in found] == [f"p{number}" for number in range(30)]
    assert all(each.score == 1 for each in found)
    assert most == 4


def test_a_failure_names_its_example_and_ends_the_others() -> None:
    ended = []

    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        if body["prompt"] == "p1":
            raise EvaluationFailed("it answered 400")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(body["prompt"])

    with pytest.raises(EvaluationFailed, match=r"^example 2: it answered 400$"):
        run(config_of(*texts("a", "b")), ask)
    assert ended == ["p0"]


def test_the_end_of_the_engine_stays_what_it_is() -> None:
    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        raise EngineDead("gone")

    with pytest.raises(EngineDead):
        run(config_of(*texts("a", "b")), ask)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda *_: 1 / 0, r"example 1: its metric raised ZeroDivisionError"),
        (lambda *_: math.nan, "is no score"),
        (lambda *_: "much", "ValueError"),
    ],
)
def test_a_function_that_fails_fails_the_example(function: Any, why: str) -> None:
    with pytest.raises(EvaluationFailed, match=why):
        run(config_of(*texts("a"), metric="own"), echo, {"own": function})


def test_a_function_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "METRIC_SECONDS", 0.01)
    held = threading.Event()

    def forever(*_: Any) -> float:
        held.wait()
        return 1.0

    with pytest.raises(EvaluationFailed, match="took more than"):
        run(config_of(*texts("a"), metric="own"), echo, {"own": forever})
    held.set()


def row(token: int, logprob: float) -> dict[str, Any]:
    return {str(token): {"logprob": logprob}}


@pytest.mark.parametrize(
    ("prompt", "whole", "own"),
    [
        ([5, 6], [5, 6, 7, 8], [-3.0, -4.0]),
        ([5, 6, 9], [5, 6, 7, 8], [-3.0, -4.0]),  # the last of the prompt became another token
        ([5, 6, 9, 9, 9], [5, 6, 7, 8], [-3.0, -4.0]),
        ([5], [5, 8], [-2.0]),
    ],
)
def test_logprob_is_the_mean_over_the_tokens_that_the_answer_adds(
    prompt: list[int], whole: list[int], own: list[float]
) -> None:
    rows = [None, *(row(token, -1.0 - at) for at, token in enumerate(whole[1:], start=1))]

    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        if path == "/tokenize":
            return {"tokens": prompt}
        assert body["prompt"] == "p0answer"
        return {"choices": [{"prompt_logprobs": rows}]}

    (found,) = run(config_of(*texts("answer"), metric="logprob"), ask)
    assert found.score == pytest.approx(sum(own) / len(own))


def test_an_answer_without_tokens_of_its_own_has_no_logprob() -> None:
    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        if path == "/tokenize":
            return {"tokens": [5, 6]}
        return {"choices": [{"prompt_logprobs": [None, row(6, -1.0)]}]}

    with pytest.raises(EvaluationFailed, match="adds no token"):
        run(config_of(*texts("answer"), metric="logprob"), ask)


def scored(*scores: float) -> list[Scored]:
    return [Scored("", score) for score in scores]


@pytest.mark.parametrize(
    ("demands", "mine", "theirs", "refused"),
    [
        ({"threshold": 0.5}, [1, 0], None, []),
        ({"threshold": 0.6}, [1, 0], None, ["below 0.6"]),
        ({"margin": 0.02}, [1, 0] * 20, [1, 0] * 20, []),
        ({"margin": 0.02}, [1, 1] * 20, [1, 0] * 20, []),
        ({"margin": 0.02}, [1, 0] * 20, [1, 1] * 20, ["against 1.000 of what is served"]),
        ({"margin": 0.02}, [0], None, []),
        ({"margin": 0.0, "threshold": 1}, [0, 0, 1], [1, 1, 1], ["below 1", "of what is served"]),
    ],
)
def test_a_verdict_names_each_thing_that_is_not_good_enough(
    demands: dict[str, float], mine: list[float], theirs: list[float] | None, refused: list[str]
) -> None:
    config = config_of(*texts("a"), **demands)
    verdict = judge(config, scored(*mine), scored(*theirs) if theirs else None)
    assert len(verdict.reasons) == len(refused)
    for reason, part in zip(verdict.reasons, refused, strict=True):
        assert part in reason


def test_the_worst_examples_are_those_that_were_answered_before() -> None:
    mine, theirs = scored(1, 0, 0, 0.5), scored(1, 0, 1, 1)
    assert worst(mine, theirs, 9) == [2, 3, 1]
    assert worst(mine, None, 2) == [1, 2]
    assert worst(scored(-3, -1), scored(-2, -2), 9) == [0]
