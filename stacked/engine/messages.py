"""`/v1/messages` for adapters with chat templates of their own.

vLLM finds out two things about the base's template and caches them: whether it accepts system
messages that do not come first, and which effort means no thinking. Here each adapter's template
has its own answers.

Relies on the attributes in which the handler caches them: `_merge_inline_system` (vLLM 0.26 to
0.33), `_disabled_thinking_effort` (0.31 and 0.32), and `_effort` of its
`disabled_thinking_effort_resolver` (0.33). A probe is made where an effort is None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from stacked.engine.chat import AdapterChat


def messages_follow_templates(messages: Any, own: Callable[[], AdapterChat | None]) -> None:
    """Have vLLM's handler of Anthropic's messages use what `own` returns at that time."""
    if hasattr(messages, "_merge_inline_system"):  # else there is no such route here
        _for_each(messages, "_merge_inline_system", own, lambda chat: not chat.takes_late_system())
    for holder, effort in (
        (messages, "_disabled_thinking_effort"),
        (getattr(messages, "disabled_thinking_effort_resolver", None), "_effort"),
    ):
        if getattr(holder, effort, "unknown") is None:  # otherwise the configured one is for all
            _for_each(holder, effort, own, lambda chat: None)


def _for_each(
    holder: Any,
    name: str,
    own: Callable[[], AdapterChat | None],
    first: Callable[[AdapterChat], Any],
) -> None:
    """Have an attribute hold a value for each adapter's chat, initially from `first`."""
    found: WeakKeyDictionary[AdapterChat, Any] = WeakKeyDictionary()
    bases = getattr(holder, name)

    def read(_holder: Any) -> Any:
        chat = own()
        if chat is None:
            return bases
        if chat not in found:
            found[chat] = first(chat)
        return found[chat]

    def write(_holder: Any, value: Any) -> None:
        nonlocal bases
        chat = own()
        if chat is None:
            bases = value
        else:
            found[chat] = value

    kind = type(holder)
    # A property hides the attribute of the same name.
    holder.__class__ = type(kind.__name__, (kind,), {name: property(read, write)})
