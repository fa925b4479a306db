"""Greedy answers to chats from a transformers model, in batches.

Owns left padding and decoding for the training script's own check; must not know tasks or servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[list[dict[str, str]]],
    max_tokens: int,
    batch: int = 25,
) -> list[str]:
    """The greedy answer to each chat, in the order given.

    `model` and `tokenizer` are of transformers (peft included); `max_tokens` bounds one answer.
    """
    tokenizer.padding_side = "left"
    # Chats of like length share a batch, so that little is padded.
    order = sorted(range(len(chats)), key=lambda i: len(chats[i][-1]["content"]))
    found: dict[int, str] = {}
    model.eval()
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = tokenizer.apply_chat_template(
            [chats[i] for i in part],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        with torch.inference_mode():
            made = model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        found.update(zip(part, texts, strict=True))
    return [found[i] for i in range(len(chats))]
