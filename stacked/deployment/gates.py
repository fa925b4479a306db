"""The gates of a group: its new adapters are scored in the engine that serves, before the switch.

Between verification and commit, when they can answer and nobody gets their answers. What is served
under the same keys is scored on the same examples. A start or restart runs no gate: there is
nothing to compare with, and no other group that could serve instead.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stacked import metrics
from stacked.config import Design, EvaluationConfig, GatesConfig
from stacked.core import Digest
from stacked.engine.loaded import Loaded
from stacked.errors import (
    EvaluationError,
    EvaluationFailed,
    GateFailed,
    GroupInvalid,
    RequestError,
    RoutingError,
)
from stacked.experiments.evaluation import Scored, Verdict, evaluate, judge, worst
from stacked.experiments.scores import LOGPROB, Function, function_of, scores_of
from stacked.fairness import Share
from stacked.groups.routing import Route, Routing
from stacked.phases import Journal
from stacked.serving import Serving
from stacked.serving.inside import ask
from stacked.serving.vllm import VllmServing
from stacked.steps import Phase

Judge = Callable[[Journal, Routing[Any]], Awaitable[None]]
"""Scores what a coming routing table brings. Raises GateFailed, EngineError."""

# Of the text of an example or an answer in a report.
_SHOWN = 200
# Of refused adapters in the error of an update; each has its own as well.
_NAMED = 5
# Whole evaluations that an engine's serving remembers, so that what is served is scored once.
_REMEMBERED = 32


@dataclass(frozen=True, slots=True)
class Judged:
    """One gate's verdict on one key of a coming group."""

    gate: str
    key: str
    digest: Digest
    examples: int
    verdict: Verdict

    def __str__(self) -> str:
        said = f"gate {self.gate}: {self.key} scores {self.verdict.score.mean:.3f}"
        if self.verdict.served is not None:
            said += f", what is served {self.verdict.served.mean:.3f}"
        return f"{said}, on {self.examples} examples"


class Gates:
    """Judges the coming groups of one server."""

    def __init__(self, config: GatesConfig) -> None:
        """Raises EvaluationInvalid for a function that cannot be imported."""
        self._config = config
        self._functions = {name: function_of(path) for name, path in config.functions.items()}
        self.last: tuple[Judged, ...] = ()
        """The verdicts of the last update that had gates."""

    def of(self, serving: Serving, design: Design) -> Judge | None:
        """What judges a group of this design; None if it has no gates.

        Raises GroupInvalid for a metric that this server does not have, or cannot compute.
        """
        if not design.gates:
            return None
        assert isinstance(serving, VllmServing), "a group with gates has a base"
        for gate in design.gates:
            try:
                scores_of(gate, self._functions)
            except EvaluationError as error:
                raise GroupInvalid(str(error)) from error
            if gate.metric == LOGPROB and not serving.engine.scores_prompts:
                raise GroupInvalid(
                    f"gate {gate.name}: metric {LOGPROB} needs logprobs of prompts, which are "
                    "wrong with engine.kv_sharing_fast_prefill"
                )
        return partial(self._judge, serving, design)

    async def _judge(
        self, serving: VllmServing, design: Design, journal: Journal, after: Routing[Loaded]
    ) -> None:
        """Score every adapter that a gate names and that `after` brings to its key.

        Raises GateFailed with all that is wrong, and EngineError.
        """
        config, before = self._config, serving.live.routing
        pairs = [(gate, key) for gate in design.gates for key in gate.keys]
        run = _Run(serving, config, journal, self._functions, len(pairs))
        self.last = ()
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(config.seconds):
                for gate, key in pairs:
                    candidate, served = after.resolve(key), _found(before, key)
                    if served is None or served.digest != candidate.digest:
                        against = _found(before, gate.against) if gate.against else served
                        self.last += (await run.judged(gate, key, candidate, against),)
                    run.judgements += 1
        except TimeoutError as error:
            raise GateFailed(
                f"the gates took longer than {config.seconds:g} s (experiments.gates.seconds); "
                f"{len(self.last)} verdicts were reached"
            ) from error
        finally:
            metrics.gates_took(asyncio.get_running_loop().time() - begun)
        refused = [each for each in self.last if each.verdict.reasons]
        for each in refused:
            journal.refused(each.digest, GateFailed(_why(each)))
        if refused:
            first = "; ".join(map(_why, refused[:_NAMED]))
            more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
            raise GateFailed(f"{len(refused)} refused by gates: {first}{more}")


def _why(each: Judged) -> str:
    return f"gate {each.gate}, {each.key}: {'; '.join(each.verdict.reasons)}"


def _found(routing: Routing[Loaded], key: str) -> Route[Loaded] | None:
    """What serves under a key; of an experiment's, its first arm. None if nothing does."""
    try:
        return routing.resolve(key)
    except RoutingError:  # also what is quarantined
        return None


class _Run:
    """The scoring of one update, with its budget of tokens."""

    def __init__(
        self,
        serving: VllmServing,
        config: GatesConfig,
        journal: Journal,
        functions: Mapping[str, Function],
        total: int,
    ) -> None:
        """`total`: how many judgements there will be at most."""
        self._serving, self._config, self._journal = serving, config, journal
        self._functions = functions
        self._total, self.judgements = total, 0
        self._tokens = 0

    async def judged(
        self,
        gate: EvaluationConfig,
        key: str,
        candidate: Route[Loaded],
        served: Route[Loaded] | None,
    ) -> Judged:
        try:
            mine = await self._scored(gate, candidate, f"{gate.name}: {key}", 0.0)
            theirs = None
            if served is not None:
                theirs = await self._scored(gate, served, f"{gate.name}: what is served", 0.5)
        except EvaluationFailed as error:
            raise GateFailed(f"gate {gate.name}, {key}: {error}") from error
        verdict = await asyncio.to_thread(judge, gate, mine, theirs)
        assert candidate.digest is not None, "a gate judges members, which have one"
        judged = Judged(gate.name, key, candidate.digest, len(mine), verdict)
        metrics.judged(gate.name, key, verdict.score.mean, not verdict.reasons)
        self._tell(1.0, str(judged))
        if verdict.reasons:
            self._show(gate, mine, theirs)
        return judged

    def _tell(self, done: float, text: str) -> None:
        """`done`: of this judgement."""
        self._journal.step(Phase.VERIFY, (self.judgements + done) / self._total, text)

    async def _scored(
        self, gate: EvaluationConfig, route: Route[Loaded], what: str, begin: float
    ) -> Sequence[Scored]:
        """The model's scores on the set, which the engine is asked for once.

        `begin`: what of this judgement is done before.
        """
        known = self._serving.scored
        name = (_digest(gate), route.digest)
        if name not in known:
            total = len(gate.examples)

            def done(count: int) -> None:
                if count % max(1, total // 10) == 0:
                    text = f"gate {what}, {count} of {total} examples"
                    self._tell(begin + count / total / 2, text)

            found = await evaluate(
                gate,
                scores_of(gate, self._functions),
                partial(self._ask, route),
                parallel=self._config.parallel,
                done=done,
            )
            while len(known) >= _REMEMBERED:
                del known[next(iter(known))]
            known[name] = found
        return known[name]

    async def _ask(self, route: Route[Loaded], path: str, body: Mapping[str, Any]) -> Any:
        share = Share(caller="gates", key=route.label, batch=True, background=True)
        try:
            answer = await ask(self._serving, route, path, body, share=share)
        except RequestError as error:
            raise EvaluationFailed(str(error)) from error
        self._tokens += answer.prompt_tokens + answer.generated_tokens
        if self._tokens > self._config.tokens:
            raise EvaluationFailed(
                f"the gates took more than {self._config.tokens} tokens (experiments.gates.tokens)"
            )
        if answer.status != 200:
            text = answer.body.decode(errors="replace")
            raise EvaluationFailed(f"the model answered {answer.status}: {_short(text)}")
        return answer.json()

    def _show(
        self, gate: EvaluationConfig, mine: Sequence[Scored], theirs: Sequence[Scored] | None
    ) -> None:
        """Report the worst examples with their texts."""
        for at in worst(mine, theirs, self._config.samples):
            example = gate.examples[at]
            last = example.messages[-1].get("content") if example.messages else example.prompt
            served = f", served {_short(theirs[at].answer)}" if theirs else ""
            self._tell(
                1.0,
                f"example {at + 1} scores {mine[at].score:.3g}: {_short(last)} wanted "
                f"{_short(example.expected)}, got {_short(mine[at].answer)}{served}",
            )


def _digest(gate: EvaluationConfig) -> str:
    """What a set asks and how it scores, whatever it demands."""
    text = gate.model_dump_json(include={"metric", "ignore", "parameters", "examples"})
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
