"""Speculative decoding beside adapters: the same answers, canaries without a bias, steps that fit.

The n-gram drafter runs in the engine of `stack`; a draft model, which takes longer, in `long`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stacked.engine.speculation import read_speculation
from stacked.errors import EngineOptionInvalid
from stacked.stack import SyncStack
from tests import tiny
from tests.conftest import TinyModels
from tests.engine.answers_run import run
from tests.servers import NGRAM

TOKENS = 24
# Texts that repeat themselves, so that what came before is a good guess.
PROMPTS = [[*range(300, 306)] * 4, [*range(320, 360)], [400, 401] * 10]


def expected(models: TinyModels) -> dict[str, list[list[int]]]:
    """The answers of transformers and PEFT."""
    adapters = {name: models.adapters[name] for name in ("a", "b")}
    return {"base": tiny.greedy(models.base, PROMPTS, TOKENS)} | {
        name: tiny.greedy(models.base, PROMPTS, TOKENS, path) for name, path in adapters.items()
    }


def expect_canaries(canaries: Iterable[Sequence[Sequence[float]]]) -> None:
    """Two of each model: the same for one, and unlike those of the others."""
    scores = []
    for first, second in canaries:
        assert len(first) == 2
        assert first == pytest.approx(second, abs=1e-5)
        scores.append(first)
    assert all(one != pytest.approx(other, abs=0.01) for one, other in itertools.pairwise(scores))


@pytest.mark.engine
def test_drafts_from_what_was_said_change_no_answer(
    stack: SyncStack, tiny_models: TinyModels
) -> None:
    answers = {
        key: stack.generate(key, PROMPTS, max_tokens=TOKENS, temperature=0, ignore_eos=True)
        for key in stack.keys
    }
    ids = {key: [list(each.token_ids) for each in some] for key, some in answers.items()}
    assert ids == expected(tiny_models)
    serving: Any = stack._stack.service.active.serving
    handles = [route.handle for route in serving.live.routing]
    expect_canaries(
        [stack._portal.call(serving.engine.canary, h)[0] for _ in range(2)] for h in handles
    )
    assert "ngram, 3 tokens ahead" in serving.plan.text()


@pytest.mark.engine
@pytest.mark.long
def test_drafts_of_another_model_change_no_answer(tiny_models: TinyModels, tmp_path: Path) -> None:
    # The base itself drafts: what it guesses is always right for it, and mostly wrong for others.
    config = {
        "method": "draft_model",
        "model": str(tiny_models.base),
        "num_speculative_tokens": 3,
    }
    adapters = {name: tiny_models.adapters[name] for name in ("a", "b")}
    seen = run(tmp_path, tiny_models.base, adapters, PROMPTS, TOKENS, speculative_config=config)
    assert seen["answers"] == expected(tiny_models)
    expect_canaries(seen["canaries"].values())
    assert "draft_model, 3 tokens ahead" in seen["plan"]


@pytest.mark.parametrize(
    ("options", "method", "tokens"),
    [
        ({"speculative_config": NGRAM}, "ngram", 3),
        ({"speculative_config": '{"method": "ngram", "num-speculative-tokens": 2}'}, "ngram", 2),
        ({"spec_method": "draft_model", "spec_tokens": 4, "spec_model": "x"}, "draft_model", 4),
        ({"speculative_config": {"model": "x"}}, "", 0),
    ],
)
def test_every_way_of_asking_for_it_is_read(
    options: Mapping[str, Any], method: str, tokens: int
) -> None:
    found = read_speculation(options)
    assert found is not None
    assert (found.method, found.tokens, found.model) == (method, tokens, None)


def test_a_draft_model_of_this_machine_is_found(tiny_models: TinyModels) -> None:
    found = read_speculation({"speculative_config": {"model": str(tiny_models.base)}})
    assert found is not None
    assert found.model == tiny_models.base


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert read_speculation({"dtype": "float32", "speculative_config": None}) is None


@pytest.mark.parametrize("config", ["ngram", 3, [], {"num_speculative_tokens": "many"}])
def test_what_is_no_config_of_it_is_refused(config: Any) -> None:
    with pytest.raises(EngineOptionInvalid, match="speculative_config"):
        read_speculation({"speculative_config": config})
