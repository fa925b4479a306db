"""One model on one evaluation set: its requests, the score of each answer, and the verdict.

It must not know how a request reaches a model; whoever calls it passes an `ask`.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from stacked.config import EvaluationConfig, Example
from stacked.errors import EvaluationFailed
from stacked.experiments.paired import Interval, difference, mean_of
from stacked.experiments.scores import LOGPROB, Score

Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""Sends a body to a path of vLLM's and returns the JSON of the answer. Raises EvaluationFailed."""

_CHAT, _TEXT, _TOKENS = "/v1/chat/completions", "/v1/completions", "/tokenize"
# What changes the prompt that a chat becomes.
_OF_TEMPLATES = ("chat_template_kwargs", "tools", "add_special_tokens")
# A function of the user's gets so long for one answer.
METRIC_SECONDS = 10.0


class Scored(NamedTuple):
    """One example: what was answered, and how good that is."""

    answer: str
    score: float


class Verdict(NamedTuple):
    """What a set says of a model; `reasons` are why it is not good enough."""

    score: Interval
    served: Interval | None
    """Of what it was compared with, on the same examples."""
    difference: Interval | None
    reasons: tuple[str, ...]


async def evaluate(
    config: EvaluationConfig,
    scores: Sequence[Score],
    ask: Ask,
    *,
    parallel: int,
    done: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Every example's answer and score, in order; `done` gets how many there are.

    `scores` are the set's, see `scores_of`. Raises EvaluationFailed with the example, and what
    `ask` raises.
    """
    found: dict[int, Scored] = {}
    waiting = iter(enumerate(zip(config.examples, scores, strict=True)))

    async def work() -> None:
        for at, (example, score) in waiting:
            try:
                found[at] = await _one(config, example, score, ask)
            except EvaluationFailed as error:
                raise EvaluationFailed(f"example {at + 1}: {error}") from error
            done(len(found))

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(parallel, len(config.examples))):
                workers.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [found[at] for at in range(len(found))]


async def _one(config: EvaluationConfig, example: Example, score: Score, ask: Ask) -> Scored:
    body = {"temperature": 0, **config.parameters, **(example.model_extra or {})}
    if config.metric == LOGPROB:
        return Scored("", await _logprob(example, body, ask))
    if example.messages is None:
        answered = await ask(_TEXT, {**body, "prompt": example.prompt})
        answer = answered["choices"][0]["text"]
    else:
        answered = await ask(_CHAT, {**body, "messages": example.messages})
        answer = answered["choices"][0]["message"].get("content") or ""
    return Scored(answer, await _in_time(score, answer))


async def _logprob(example: Example, body: Mapping[str, Any], ask: Ask) -> float:
    """The mean log probability of the expected answer's tokens, each after those before it.

    They are the tokens that follow the prompt's in the text with both: where the last of the prompt
    and the first of the answer are one token, that one counts.
    """
    expected = str(example.expected)
    of_prompt = {name: body[name] for name in _OF_TEMPLATES if name in body}
    body = {**body, "max_tokens": 1, "prompt_logprobs": 0}
    if example.messages is None:
        prompt = await ask(_TOKENS, {**of_prompt, "prompt": example.prompt})
        whole = await ask(_TEXT, {**body, "prompt": f"{example.prompt}{expected}"})
        rows = whole["choices"][0]["prompt_logprobs"]
    else:
        prompt = await ask(_TOKENS, {**of_prompt, "messages": example.messages})
        answer = {"role": "assistant", "content": expected}
        form = {"add_generation_prompt": False, "continue_final_message": True}
        whole = await ask(_CHAT, {**body, **form, "messages": [*example.messages, answer]})
        rows = whole["prompt_logprobs"]
    ids, values = [prompt["tokens"][0]], [0.0]  # nothing predicts the first one
    for row in rows[1:]:
        ((id, entry),) = row.items()
        ids.append(int(id))
        values.append(entry["logprob"])
    pairs = zip(ids, prompt["tokens"], strict=False)
    begin = next((at for at, (id, known) in enumerate(pairs) if id != known), None)
    own = values[min(len(prompt["tokens"]), len(ids)) if begin is None else begin :]
    if not own:
        raise EvaluationFailed("what is expected adds no token to the prompt")
    return math.fsum(own) / len(own)


async def _in_time(score: Score, answer: str) -> float:
    """The score, made in a thread of its own, which may be a user's that never ends."""
    made: Future[float] = Future()
    made.set_running_or_notify_cancel()  # from here on nobody cancels it

    def run() -> None:
        try:
            made.set_result(score(answer))
        except Exception as error:  # noqa: BLE001  a user's function raises whatever it likes
            made.set_exception(error)

    threading.Thread(target=run, name="stacked-metric", daemon=True).start()
    try:
        async with asyncio.timeout(METRIC_SECONDS):
            value = await asyncio.wrap_future(made)
    except TimeoutError as error:
        raise EvaluationFailed(f"its metric took more than {METRIC_SECONDS:g} s") from error
    except EvaluationFailed:
        raise
    except Exception as error:
        raise EvaluationFailed(f"its metric raised {error!r:.200}") from error
    if not math.isfinite(value):
        raise EvaluationFailed(f"its metric returned {value}, which is no score")
    return value


def judge(
    config: EvaluationConfig, candidate: Sequence[Scored], served: Sequence[Scored] | None
) -> Verdict:
    """Whether a model reaches the set's threshold, and is not worse than what is served."""
    mine = [each.score for each in candidate]
    score = mean_of(mine, config.confidence)
    reasons = []
    if config.threshold is not None and score.mean < config.threshold:
        reasons.append(f"its mean score {score.mean:.3f} is below {config.threshold:g}")
    if served is None:
        return Verdict(score, None, None, tuple(reasons))
    theirs = [each.score for each in served]
    gap, theirs_mean = difference(mine, theirs, config.confidence), mean_of(theirs)
    if config.margin is not None and gap.low < -config.margin:
        reasons.append(
            f"its mean score {score.mean:.3f} against {theirs_mean.mean:.3f} of what is served may "
            f"be less by {-gap.low:.3f} ({config.confidence:.0%} confidence), and the margin is "
            f"{config.margin:g}"
        )
    return Verdict(score, theirs_mean, gap, tuple(reasons))


def worst(candidate: Sequence[Scored], served: Sequence[Scored] | None, most: int) -> list[int]:
    """The numbers of the examples that speak most against a model, from 0."""
    theirs = [each.score for each in served] if served else [1.0] * len(candidate)
    losses = {at: theirs[at] - each.score for at, each in enumerate(candidate)}
    wrong = [at for at, loss in losses.items() if loss > 0 or 0 <= candidate[at].score < 1]
    return sorted(wrong, key=lambda at: (-losses[at], candidate[at].score))[:most]
