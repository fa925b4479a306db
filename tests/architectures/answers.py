"""Adapters of a base and what transformers and PEFT answer with each, in float32.

It owns which adapters are tried and what is right; it must not know the engine or anything of the
package under test.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tests.architectures import bases

RANK = 8
LENGTH = 12
PROMPTS = (
    [301, 77, 420, 333, 96, 505],
    [45, 318, 402, 510, 350, 61],
    [266, 499, 88, 371, 310, 430],
)

KINDS = ("all", "attention", "head", "embed")
MAMBAS = ("falcon_h1", "mamba", "mamba2", "nemotron_h")
"""Model types of which PEFT adapts no `out_proj`, and so not "all-linear" either."""

ALONE = "only "
"""What the names of adapters begin with that adapt the modules of one name alone."""


@dataclass(frozen=True)
class Answer:
    """Greedy tokens of each prompt, and the log-probability of each token."""

    tokens: list[list[int]]
    logprobs: list[list[float]]

    def distance(self, other: Answer) -> float:
        """The largest difference of log-probabilities; infinite where a token differs."""
        if self.tokens != other.tokens:
            return float("inf")
        pairs = zip(chain(*self.logprobs), chain(*other.logprobs), strict=True)
        return max(abs(a - b) for a, b in pairs)


def make(name: str, root: Path, *, alone: bool, asks: bool = True) -> dict[str, Answer | str]:
    """Build base and adapters under `root`; the answers of "base" and by adapter.

    A sentence in place of an answer: why PEFT makes no such adapter. `alone` adds an adapter for
    each name that linear modules have. Without `asks`, answers are empty.
    """
    answer = ask if asks else (lambda model: Answer([], []))
    answers: dict[str, Answer | str] = {}
    model = bases.build(name, root / "base")
    answers["base"] = answer(model)
    for adapter, targets in targets_of(model, alone=alone).items():
        try:
            adapted = adapt(model, name + adapter, targets)
        except (ValueError, TypeError, AttributeError) as error:
            answers[adapter] = str(error).splitlines()[0][:200]
            continue
        adapted.create_or_update_model_card = lambda path: None  # takes longer than all else
        # "auto" would store the whole embedding beside an adapter that targets it.
        adapted.save_pretrained(root / adapter, save_embedding_layers=False)
        answers[adapter] = answer(adapted)
    return answers


def targets_of(model: Any, *, alone: bool) -> dict[str, list[str] | str | None]:
    """PEFT's `target_modules` by adapter; None where the base has no such module."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    output, read = model.get_output_embeddings(), model.get_input_embeddings()
    names = {part: module for module, part in model.named_modules()}
    linear = [
        module
        for part, module in names.items()
        if isinstance(part, Linear | Conv1D)
        and part is not output
        and not _last(module).isdecimal()  # of a Sequential: PEFT takes it for a layer's number
    ]
    own = _above(names[read])  # the language model's, where there are other towers
    inside = [module for module in linear if module.startswith(own)]

    def called(last: str) -> list[str]:
        """Targets for the modules of the language model that are called so."""
        found = [module for module in linear if _last(module) == last]
        return [last] if all(module in inside for module in found) else [*set(found) & {*inside}]

    attention = [each for each in inside if "att" in each or _last(each) == "q_proj"]
    found: dict[str, list[str] | str | None] = {
        "all": "all-linear",
        "attention": called(_last(attention[0])) if attention else None,
        "head": [_last(names[output])] if output is not None else None,
        "embed": [_last(names[read])],
    }
    each = [*dict.fromkeys(map(_last, inside))]
    if getattr(model.config, "model_type", "") in MAMBAS:
        found["all"] = [last for last in each if last != "out_proj"]
    if alone:
        found |= {ALONE + last: called(last) for last in each}
    if alone and len(inside) < len(linear):
        found[ALONE + "the language model's"] = inside
    return found


def adapt(model: Any, seed: str, targets: list[str] | str | None) -> Any:
    """A copy of the model with a random adapter, strong enough that answers differ."""
    import torch
    from peft import LoraConfig, get_peft_model

    if targets is None:
        raise ValueError("the base has no such module")
    lora = LoraConfig(
        r=RANK,
        lora_alpha=RANK * 4,
        target_modules=targets,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(seed.encode()))
        return get_peft_model(copy.deepcopy(model), lora).eval()


def ask(model: Any) -> Answer:
    """Greedy tokens of all prompts in one batch; the end token does not stop them."""
    import torch

    prompts = torch.tensor(PROMPTS)
    with torch.inference_mode():
        out = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = out.sequences[:, prompts.shape[1] :]
    logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)
    chosen = logprobs.gather(-1, tokens[..., None])[..., 0]
    return Answer(tokens.tolist(), chosen.tolist())


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _above(module: str) -> str:
    return module.rpartition(".")[0]
