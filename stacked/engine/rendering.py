"""How prompts become tokens: short ones in the call, chats with their adapter's own template.

Other prompts pass through several tasks and a thread. Each handover between tasks waits for a round
of the server's loop, and under load a round takes as long as sending the tokens of a step to all
clients: requests spent more time in such rounds than in the engine.

Relies on a renderer's `render_cmpl` and `render_chat`, vLLM's own for offline use, doing what their
`_async` twins do, and on the twins being looked up on the renderer that `AsyncLLM` holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from math import inf
from typing import Any

from stacked.engine.chat import AdapterChat, AdapterTemplate

# Up to here it takes no more processor time than vLLM's tasks and thread (0.36 and 0.38 ms with
# SmolLM2's tokeniser), but more of the loop's own (vLLM's way: 0.08), which delays tokens.
SHORT_CHARACTERS = 1024


def render_short_prompts_at_once(renderer: Any, *, chats: bool) -> None:
    """Have this renderer's asynchronous calls do their work at once for short prompts.

    `chats`: for chats too. Not if requests may bring their own template: vLLM limits the time of
    such a template, which takes a thread.
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
        trusted = not isinstance(params.chat_template, AdapterTemplate)
        if trusted and sum(map(_characters, read)) <= SHORT_CHARACTERS:
            return renderer.render_chat(conversations, params, *args, **kwargs)
        return await chat(conversations, params, *args, **kwargs)

    renderer.render_cmpl_async = render_completion
    if chats:
        renderer.render_chat_async = render_chat


def render_by_own_template(
    renderer: Any,
    own: Callable[[], AdapterChat | None],
    default: str | None,
    threads: Executor,
) -> None:
    """Have this renderer use the templates of `own()` for requests that bring none.

    `default` is the template of requests that bring none. Adapters' templates share `threads`, so
    a slow one delays only other adapters' templates.
    """
    chat, apply = renderer.render_chat_async, getattr(renderer, "_apply_chat_template_async", None)

    async def render_chat(
        conversations: Sequence[Any], params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        brought = own()
        if brought is not None:
            params = brought.applied(params, default)
        return await chat(conversations, params, *args, **kwargs)

    async def apply_template(*args: Any, **kwargs: Any) -> Any:
        from vllm.renderers.hf import safe_apply_chat_template

        assert apply is not None
        if not isinstance(kwargs.get("chat_template"), AdapterTemplate):
            return await apply(*args, **kwargs)
        work = partial(safe_apply_chat_template, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    renderer.render_chat_async = render_chat
    if apply is not None:  # absent if vLLM renders without templates
        renderer._apply_chat_template_async = apply_template


def _short_texts(prompts: Sequence[Any]) -> bool:
    """Whether these prompts, as vLLM parsed them, are only texts or tokens, and short together."""
    length = 0
    for prompt in prompts:
        if not isinstance(prompt, Mapping) or not prompt.keys() <= {"prompt", "prompt_token_ids"}:
            return False
        length += sum(map(len, prompt.values()))
    return length <= SHORT_CHARACTERS


def _characters(fields: Any) -> float:
    """How much text a template finds in these; infinitely much if there is more than text."""
    if not isinstance(fields, Mapping):  # such as a message of OpenAI's gpt-oss, which is an object
        return inf
    length = 0
    for value in fields.values():
        if isinstance(value, str):
            length += len(value)
        elif not (value is None or isinstance(value, bool | int | float)):
            return inf
    return length
