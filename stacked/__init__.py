"""Stacked serves one base LLM and many LoRA fine-tunes of it from one engine.

    async with stacked.open("configs/demo.yaml") as stack:
        answers = await stack.generate("sql", ["How many singers are there?"], max_tokens=64)

Importing the package is cheap: the engine is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stacked.stack import Answer, Stack, open, open_sync

__version__ = "0.1.0"
__all__ = ["Answer", "Stack", "__version__", "open", "open_sync"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `stacked --help` and the client commands do not pay for the engine.
    if name in {"Answer", "Stack", "open", "open_sync"}:
        from stacked import stack

        return getattr(stack, name)
    raise AttributeError(f"module 'stacked' has no attribute {name!r}")
