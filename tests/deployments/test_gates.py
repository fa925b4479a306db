"""Gates on a real engine: what is staged is scored there beside requests, and refused or served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stacked.config import Design, EvaluationConfig, GatesConfig
from stacked.core import Adapter, Member, ModelGroup, model_id_of
from stacked.deployment.gates import Gates
from stacked.errors import GateFailed, GroupInvalid, StackedError
from stacked.experiments.evaluation import evaluate
from stacked.experiments.scores import scores_of
from stacked.fairness import Share
from stacked.serving.inside import ask
from stacked.serving.vllm import VllmServing
from stacked.stack import SyncStack
from stacked.store import AdapterStore
from tests import tiny
from tests.conftest import TinyModels
from tests.live.lab import Outcome
from tests.waiting import until_async

pytestmark = pytest.mark.engine

T = TypeVar("T")
PROMPTS = [f"The quick brown fox {number}" for number in range(12)]
TOKENS = 6


@dataclass(frozen=True)
class Bench:
    """The stack's engine, with the tiny adapters in a store."""

    stack: SyncStack
    adapters: dict[str, Adapter]

    @property
    def serving(self) -> VllmServing:
        return self.stack._stack.service.vllm

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        done: T = self.stack._portal.call(work)
        return done

    def answers(self, key: str) -> list[str]:
        sampling = {"max_tokens": TOKENS, "temperature": 0}
        return [each.text for each in self.stack.generate(key, PROMPTS, **sampling)]

    def members(self, **keys: str) -> tuple[Member, ...]:
        found = ((key, self.adapters[name]) for key, name in keys.items())
        return tuple(Member(model_id_of(each.digest), each, key) for key, each in found)

    def update(
        self, design: Design, gates: Gates, outcome: Outcome | None = None, **keys: str
    ) -> Outcome:
        return self.run(partial(self.updated, design, gates, outcome or Outcome({}), **keys))

    async def updated(self, design: Design, gates: Gates, outcome: Outcome, **keys: str) -> Outcome:
        live = self.serving.live
        group = ModelGroup("next", live.routing.base, self.members(**keys))
        judge = gates.of(self.serving, design)
        partly: Callable[[Any], Awaitable[None]] | None = judge and partial(judge, outcome)
        try:
            outcome.report = await live.update(group.base, group.members, outcome, design, partly)
        except StackedError as error:
            outcome.error = error
        return outcome

    def loaded(self) -> int:
        return len(self.run(self.serving.engine.list))


@pytest.fixture
def bench(stack: SyncStack, tiny_models: TinyModels, tmp_path: Path) -> Iterator[Bench]:
    """Serves `a` and `b`, before a test and after it."""
    serving = stack._stack.service.vllm
    store = AdapterStore(tmp_path)
    adapters = {
        name: store.add(str(tiny_models.adapters[name]), base=serving.modules)
        for name in ("a", "b", "c")
    }
    bench, before = Bench(stack, adapters), serving.live.routing
    yield bench
    serving.scored.clear()
    nothing = partial(serving.live.update, before.base, before.members, Outcome({}))
    bench.run(nothing)


def gate(expected: Sequence[str], **more: Any) -> Design:
    """One gate for key `a`: adapters that continue each prompt so."""
    examples = [{"prompt": p, "expected": e} for p, e in zip(PROMPTS, expected, strict=True)]
    tree = {
        "name": "fox",
        "keys": ["a"],
        "parameters": {"max_tokens": TOKENS},
        "margin": 0.02,
        "examples": examples,
        **more,
    }
    return Design(gates=(EvaluationConfig.model_validate(tree),))


@contextmanager
def traffic(bench: Bench, key: str) -> Iterator[list[str]]:
    """One request after another of a client to a key, whose answers are collected."""
    answers: list[str] = []
    over = asyncio.Event()

    async def ask_on() -> None:
        stack = bench.stack._stack
        while not over.is_set():
            (answer,) = await stack.generate(key, PROMPTS[0], max_tokens=TOKENS, temperature=0)
            answers.append(answer.text)

    task = bench.stack._portal.start_task_soon(ask_on)
    try:
        yield answers
    finally:
        bench.stack._portal.call(over.set)
        task.result()


def test_a_worse_adapter_is_refused_with_its_score_and_a_better_one_goes_live(
    bench: Bench,
) -> None:
    before, gates = bench.answers("a"), Gates(GatesConfig(parallel=2))
    others = bench.answers("b")
    with traffic(bench, "b") as answered:
        refused = bench.update(gate(before), gates, a="c", b="b")
    assert isinstance(refused.error, GateFailed)
    assert "0.000 against 1.000" in str(refused.error)
    assert refused.blamed.keys() == {bench.adapters["c"].digest}
    assert (refused.committed, bench.loaded()) == ([], 2)
    log = "\n".join(refused.log)
    assert "gate fox: a scores 0.000, what is served 1.000, on 12 examples" in log
    assert f"example 1 scores 0: {PROMPTS[0]!r} wanted {before[0]!r}, got " in log
    assert f"served {before[0]!r}" in log
    assert bench.answers("a") == before
    assert set(answered) == {others[0]}

    better = bench.update(gate(bench_answers_of_c(bench)), gates, a="c", b="b")
    assert better.error is None
    assert better.report is not None
    (judged,) = gates.last
    assert (judged.gate, judged.key, judged.verdict.score.mean) == ("fox", "a", 1.0)
    assert judged.verdict.served is not None
    assert judged.verdict.served.mean == 0.0
    assert bench.answers("a") != before


def bench_answers_of_c(bench: Bench) -> list[str]:
    """What adapter c answers, which is served only to be asked."""
    bench.update(Design(), Gates(GatesConfig()), a="a", b="b", c="c")
    found = bench.answers("c")
    bench.update(Design(), Gates(GatesConfig()), a="a", b="b")
    return found


def test_what_is_served_already_is_not_scored_and_what_was_scored_is_remembered(
    bench: Bench,
) -> None:
    before, gates = bench.answers("a"), Gates(GatesConfig())
    same = bench.update(gate(before), gates, a="a", b="c")
    assert (same.error, gates.last, bench.serving.scored) == (None, (), {})
    bench.update(gate(before, margin=1.0), gates, a="c", b="c")
    assert len(bench.serving.scored) == 2
    again = bench.update(gate(before, threshold=1.0), gates, a="a", b="c")
    assert again.error is None
    assert len(bench.serving.scored) == 2
    assert not any("of 12 examples" in line for line in again.log)


def test_a_key_that_is_new_has_a_threshold_and_can_be_compared_with_another(
    bench: Bench,
) -> None:
    before, gates = bench.answers("a"), Gates(GatesConfig(samples=0))
    design = gate(before, keys=["new"], margin=0.0)
    assert bench.update(design, gates, a="a", b="b", new="c").error is None
    assert gates.last[0].verdict.served is None
    bench.update(Design(), gates, a="a", b="b")
    compared = bench.update(
        gate(before, keys=["new"], margin=0.0, against="a"), gates, a="a", b="b", new="c"
    )
    assert isinstance(compared.error, GateFailed)
    assert not any("wanted" in line for line in compared.log)


@pytest.mark.parametrize(
    ("budget", "more", "why"),
    [
        ({"tokens": 40}, {}, r"experiments\.gates\.tokens"),
        ({"seconds": 0.01}, {}, r"experiments\.gates\.seconds"),
        ({}, {"parameters": {"max_tokens": 10**6}}, "the model answered 400"),
        ({}, {"parameters": {"max_token": 3}}, "unknown parameter 'max_token'"),
        (
            {"functions": {"own": "tests.deployments.test_gates:broken"}},
            {"metric": "own"},
            "example 1: its metric raised ZeroDivisionError",
        ),
    ],
)
def test_what_cannot_be_scored_fails_the_update_and_leaves_nothing(
    bench: Bench, budget: dict[str, Any], more: dict[str, Any], why: str
) -> None:
    before = bench.answers("a")
    failed = bench.update(gate(before, **more), Gates(GatesConfig(**budget)), a="c", b="b")
    assert isinstance(failed.error, GateFailed)
    failed_with = pytest.raises(GateFailed, match=why)
    with failed_with:
        raise failed.error
    assert (failed.committed, bench.loaded()) == ([], 2)
    assert bench.answers("a") == before


def broken(answer: str, expected: Any, example: Any) -> float:
    """A metric of a user's."""
    return 1 / 0


def test_an_update_that_is_cancelled_scores_no_longer(bench: Bench) -> None:
    before, gates = bench.answers("a"), Gates(GatesConfig())
    states: Any = bench.serving.engine.client.output_processor.request_states
    design = gate(before, parameters={"max_tokens": 200, "ignore_eos": True})

    async def cancelled() -> None:
        work = bench.updated(design, gates, Outcome({}), a="c", b="b")
        task = asyncio.create_task(work)
        await until_async(lambda: states)
        await until_async(lambda: bench.serving.live.leases.things())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not bench.serving.live.leases.things()
        await until_async(lambda: not states)

    bench.run(cancelled)
    assert bench.loaded() == 2
    assert bench.answers("a") == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"metric": "own"}, "metric 'own' is not known here"),
        ({"metric": "os:system"}, "not known here"),
        ({"metric": "regex", "name": "x"}, "no regular expression"),
    ],
)
def test_gates_that_cannot_be_scored_are_refused_before_anything_is_staged(
    bench: Bench, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(GroupInvalid, match=why):
        bench.update(gate(["("] * len(PROMPTS), **more), Gates(GatesConfig()), a="c", b="b")


def test_logprobs_are_no_metric_where_the_engine_has_none_of_prompts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.serving.engine.args, "kv_sharing_fast_prefill", True)
    design = gate(["x"] * len(PROMPTS), metric="logprob", margin=0.1)
    with pytest.raises(GroupInvalid, match="kv_sharing_fast_prefill"):
        bench.update(design, Gates(GatesConfig()), a="c", b="b")


CHAT = [{"role": "user", "content": "Name a colour."}]


@pytest.mark.parametrize("key", ["base", "a"])
def test_logprob_is_that_of_transformers(bench: Bench, tiny_models: TinyModels, key: str) -> None:
    examples = [
        {"prompt": "The quick brown", "expected": " fox jumps"},
        {"messages": CHAT, "expected": "green, orange and violet"},
    ]
    config = EvaluationConfig.model_validate(
        {"name": "l", "metric": "logprob", "examples": examples}
    )
    route = bench.serving.live.routing.resolve(key)

    async def inside(path: str, body: Any) -> Any:
        answer = await ask(bench.serving, route, path, body, share=Share(batch=True))
        assert answer.status == 200, answer.body
        return answer.json()

    found = bench.run(partial(evaluate, config, scores_of(config, {}), inside, parallel=1))
    adapter = None if key == "base" else tiny_models.adapters[key]
    wanted = _logprobs(tiny_models.base, adapter, examples)
    assert [each.score for each in found] == pytest.approx(wanted, abs=2e-3)


def _logprobs(base: Path, adapter: Path | None, examples: Sequence[Any]) -> list[float]:
    """The mean log probability of what is expected, by transformers and PEFT."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.use_one_thread()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for example in examples:
        text = example.get("prompt") or tokenizer.apply_chat_template(
            example["messages"], tokenize=False, add_generation_prompt=True
        )
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text + example["expected"], add_special_tokens=False)["input_ids"]
        assert ids[: len(before)] == before, "an example whose answer begins with a token"
        with torch.inference_mode():
            rows = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
        own = [rows[at - 1, ids[at]].item() for at in range(len(before), len(ids))]
        found.append(sum(own) / len(own))
    return found
