"""On the real base, answers over HTTP equal those of transformers and peft on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.servers import ROOT
from tests.serving import Server

pytestmark = pytest.mark.engine

MAX_TOKENS = 12
ADAPTERS = {"sql": "sql/v2", "triage": "triage/v1", "pirate": "pirate/v1"}
QUESTIONS = (
    "What is the capital of France?",
    "Schema: cars(maker, year, price)\nQuestion: Which makers sold a car in 1999?",
    "Where is the treasure?",
    "My invoice is wrong and I was charged twice. Please help.",
    "Write a short poem about the sea.",
    "Schema: users(id, name)\nQuestion: How many users are there?",
    "The mobile app crashes when I log in, this is urgent!",
    "List three colours.",
)


def reference(base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> Any:
    """Greedy continuations by transformers (and peft), one prompt at a time, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny.use_one_thread()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).float()
    model.eval()
    answers = []
    for ids in prompts:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
            )
        answers.append(tuple(out[0, len(ids) :].tolist()))
    return answers


def test_answers_equal_transformers_and_peft_and_the_base_is_untouched(
    demo: Server, base_dir: Path
) -> None:
    """Three adapters and the base, eight prompts each, all in one mixed batch, token for token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for question in QUESTIONS
    ]

    def served(key: str) -> list[tuple[int, ...]]:
        body = {"model": key, "prompt": prompts, "max_tokens": MAX_TOKENS, "temperature": 0}
        with demo.client() as client:
            answer = client.post("/v1/completions", json={**body, "return_token_ids": True})
        assert answer.status_code == 200, answer.text
        return [tuple(choice["token_ids"]) for choice in answer.json()["choices"]]

    keys = ["base", *ADAPTERS]
    with ThreadPoolExecutor(len(keys)) as pool:
        answers = dict(zip(keys, pool.map(served, keys), strict=True))
    for key in keys:
        adapter = ROOT / "adapters" / ADAPTERS[key] if key in ADAPTERS else None
        assert answers[key] == reference(base_dir, adapter, prompts), key
