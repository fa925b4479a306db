"""Short prompts become tokens where they are, instead of by way of several tasks and a thread.

Each handover between tasks waits for a round of the server's loop, and under load a round takes as
long as sending everybody's tokens of a step: requests spent more time between such rounds than in
the engine. It must not know what a prompt says.

Relies on a renderer's `render_cmpl` and `render_chat`, vLLM's own for offline use, doing what their
`_async` twins do, and on the twins being looked up on the renderer that `AsyncLLM` holds (vLLM 0.26
to 0.32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

# Up to here it takes no more processor time than the way by tasks and a thread (0.36 and 0.38 ms,
# SmolLM2's tokeniser), though more of the loop's own (0.08), in which nobody's tokens are sent.
SHORT_CHARACTERS = 1024


def render_short_prompts_at_once(renderer: Any, *, chats: bool) -> None:
    """Have this renderer's asynchronous calls do their work at once where a prompt is short.

    `chats`: those, too. Not where requests may bring their own template: vLLM bounds the time of
    such a one, which takes a thread.
    """
    completion, chat = renderer.render_cmpl_async, renderer.render_chat_async

    async def render_completion(prompts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if _short_texts(prompts):
            return renderer.render_cmpl(prompts, *args, **kwargs)
        return await completion(prompts, *args, **kwargs)

    async def render_chat(
        conversations: Sequence[Any], params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        read = [message for conversation in conversations for message in conversation]
        read.append(params.chat_template_kwargs)
        if sum(map(_characters, read)) <= SHORT_CHARACTERS:
            return renderer.render_chat(conversations, params, *args, **kwargs)
        return await chat(conversations, params, *args, **kwargs)

    renderer.render_cmpl_async = render_completion
    if chats:
        renderer.render_chat_async = render_chat


def _short_texts(prompts: Sequence[Any]) -> bool:
    """Whether these prompts, as vLLM parsed them, are texts or tokens alone, and short together."""
    length = 0
    for prompt in prompts:
        if not isinstance(prompt, Mapping) or not prompt.keys() <= {"prompt", "prompt_token_ids"}:
            return False
        length += sum(map(len, prompt.values()))
    return length <= SHORT_CHARACTERS


def _characters(fields: Mapping[str, Any]) -> float:
    """How much text a template finds in these; infinitely much where there is more than text."""
    length = 0
    for value in fields.values():
        if isinstance(value, str):
            length += len(value)
        elif not (value is None or isinstance(value, bool | int | float)):
            return inf
    return length
