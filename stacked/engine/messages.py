"""`/v1/messages` beside adapters with chat templates of their own.

vLLM asks the base's template two things once and for all: whether it takes system messages that do
not come first, and which effort stands for no thinking. Here each adapter's template is asked.

Relies on `AnthropicServingMessages._merge_inline_system`, `._disabled_thinking_effort`,
`._get_disabled_thinking_effort` and `._probe_disabled_thinking_effort` (vLLM 0.32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from stacked.engine.chat import AdapterChat


def messages_follow_templates(messages: Any, own: Callable[[], AdapterChat | None]) -> None:
    """Have vLLM's handler of Anthropic's messages ask what `own` gives at the time, if anything."""
    if not hasattr(messages, "_merge_inline_system"):  # no such route here, or another vLLM
        return
    kind, bases = type(messages), messages._merge_inline_system
    theirs, fixed = messages._get_disabled_thinking_effort, messages._disabled_thinking_effort
    efforts: WeakKeyDictionary[AdapterChat, Any] = WeakKeyDictionary()

    def merge_inline_system(_self: Any) -> Any:
        chat = own()
        return bases if chat is None else not chat.takes_late_system()

    async def disabled_thinking_effort() -> Any:
        chat = own()
        if chat is None or fixed is not None:
            return await theirs()
        if chat not in efforts:
            efforts[chat] = await messages._probe_disabled_thinking_effort()
        return efforts[chat]

    messages._get_disabled_thinking_effort = disabled_thinking_effort
    # A property hides the attribute of the same name.
    more = {"_merge_inline_system": property(merge_inline_system)}
    messages.__class__ = type(kind.__name__, (kind,), more)
