"""The Python API on the real base: answers equal transformers + peft on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import stacked
from stacked import config
from tests.demo.conftest import CONFIG, ROOT

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
    base_dir: Path, data_dir: Path
) -> None:
    """Three adapters and the base, eight prompts each, all in one mixed batch, token for token."""
    import asyncio

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
    names: list[str | None] = [None, *ADAPTERS]

    async def served() -> dict[str | None, list[tuple[int, ...]]]:
        async with stacked.open(config.load(CONFIG), data_dir=data_dir) as stack:
            jobs = [
                stack.generate(name, prompts, max_tokens=MAX_TOKENS, temperature=0)
                for name in names
            ]
            batches = await asyncio.gather(*jobs)
            pieces = [
                piece
                async for piece in stack.stream("sql", prompts[1], max_tokens=8, temperature=0)
            ]
            whole = await stack.generate("sql", [prompts[1]], max_tokens=8, temperature=0)
            assert "".join(pieces) == whole[0].text
        return {
            name: [answer.token_ids for answer in batch]
            for name, batch in zip(names, batches, strict=True)
        }

    answers = asyncio.run(served())
    for name in names:
        adapter = ROOT / "adapters" / ADAPTERS[name] if name else None
        assert answers[name] == reference(base_dir, adapter, prompts), name
