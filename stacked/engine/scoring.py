"""How probable a model finds an answer that is given."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from stacked.engine.engine import Engine
from stacked.engine.loaded import Loaded

MOST_TOKENS = 1024
"""Of a prompt and its answer together. vLLM computes the logits of all of them at once, which take
as many times the vocabulary, of memory that no other request needs."""


async def mean_logprob(
    engine: Engine,
    loaded: Loaded | None,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    request_id: str,
) -> float | None:
    """The mean, by token, of an answer's logprobs after a prompt; None for no or too many tokens.

    Raises ParameterInvalid if the two do not fit the model, EngineDead.
    """
    if not (answer and engine.scores_prompts) or len(prompt) + len(answer) > MOST_TOKENS:
        return None
    sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    (output,) = await engine.generate(
        [[*prompt, *answer]], loaded, request_id=request_id, sampling=sampling
    )
    rows = (output.prompt_logprobs or [])[len(prompt) :]
    found = [row[token].logprob for row, token in zip(rows, answer, strict=True) if row]
    return fmean(found) if found else None
