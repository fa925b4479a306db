"""What a canary asks an engine, and what of the answer counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

# What canaries read: one token, then the text's next one whatever is likelier, a choice that does
# not show in the logprobs. One row in each of two steps delays the other streams of the batch
# least, and at a first token alone queries and keys would make no difference. With speculative
# decoding vLLM takes no logit_bias: there both tokens are a prompt, whose logprobs are the same
# two, in one step.
_TEXT = "Question: SELECT name FROM users"
_SAMPLING = {"temperature": 0.0, "logprobs": 1, "ignore_eos": True}
# vLLM clamps a logit bias to 100. Logits of language models lie within some tens of each
# other, so that a token with this on top is the likeliest whatever the model says.
_CERTAIN = 100.0


def canary_request(tokenizer: Any, config: Any) -> tuple[list[int], dict[str, Any]]:
    """A canary's prompt, as token ids, and its sampling parameters. `config`: vLLM's, whole."""
    prompt: list[int] = tokenizer.encode(_TEXT)[:2]
    if config.speculative_config is not None:
        return prompt, {**_SAMPLING, "max_tokens": 1, "prompt_logprobs": 1}
    sampling: dict[str, Any] = {**_SAMPLING, "max_tokens": 2}
    second = prompt.pop()
    if config.model_config.logprobs_mode.startswith("raw"):
        sampling["logit_bias"] = {second: _CERTAIN}
    return prompt, sampling


def canary_scores(output: RequestOutput) -> Sequence[float]:
    """The best logprobs of a canary's answer, in order; NaN where one is not finite."""
    rows = [*(output.prompt_logprobs or ()), *(output.outputs[0].logprobs or ())]
    return [_best(row) for row in rows if row]  # nothing comes before a prompt's first token


def _best(row: Mapping[int, Any]) -> float:
    """The likeliest token's logprob, which is stable if two are equally likely; or NaN."""
    values = [each.logprob for each in row.values()]
    return max(values) if all(map(math.isfinite, values)) else math.nan
