"""What a copy of a request is: the same prompt and parameters, without what concerns its client.

It must not know who makes copies, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COPIED = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"})
"""The endpoints that generate text and change nothing."""

# How the answer is sent, for whom, what comes with it, and what is done with it.
_LEFT_OUT = frozenset(
    {
        "kv_transfer_params",
        "logprobs",
        "metadata",
        "model",
        "priority",
        "prompt_logprobs",
        "request_id",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "top_logprobs",
        "user",
    }
)
# Several answers have no counterpart; and for `/v1/responses` the server may call tools, and read
# and write conversations.
_COUNTS = ("n", "best_of")
_STATEFUL = ("background", "conversation", "previous_response_id", "prompt", "tools")


def copy_of(path: str, body: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any] | None:
    """The body of a copy; None if a request like this is not copied.

    `known`: the parameters of the endpoint. Others were ignored for the client, too.
    """
    several = any(body.get(name) not in (None, 1) for name in _COUNTS)
    several = several or bool(body.get("use_beam_search"))
    responses = path == "/v1/responses"
    if path not in COPIED or several or (responses and any(map(body.get, _STATEFUL))):
        return None
    copied = {name: body[name] for name in body.keys() & known - _LEFT_OUT}
    return copied | {"store": False} if responses else copied


def is_greedy(body: Mapping[str, Any]) -> bool:
    """Whether no chance takes part in the answer."""
    return body.get("temperature") == 0 or body.get("top_k") == 1
