"""How many replicas the requests of now need. Pure; Ray Serve asks it every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAITING, FIRST_TOKEN = "waiting", "first_token"
"""What each replica reports: requests in its engine's queue, and seconds to a stream's start."""

# Nothing more is read from a delay that is any longer: a few long prompts must not start them all.
_MOST_AT_ONCE = 2.0


def needed(
    replicas: int,
    requests: float,
    waiting: float,
    first_token: float,
    *,
    each: float,
    most_seconds: float | None,
) -> float:
    """How many replicas instead of `replicas`, before bounds and delays.

    `requests` are all that are open, `waiting` those of them in engines' queues; `each` is what one
    replica should have, and `first_token` the longest of what replicas report.
    """
    by_requests = requests / each
    running = requests - waiting
    by_waiting = replicas * min(_MOST_AT_ONCE, requests / running if running > 0 else _MOST_AT_ONCE)
    slow = first_token / most_seconds if most_seconds else 0.0
    by_delay = replicas * min(_MOST_AT_ONCE, slow) if slow > 1 else 0.0
    return max(by_requests, by_waiting if waiting >= 1 else 0.0, by_delay)


class Policy:
    """What Ray Serve calls with its `AutoscalingContext`."""

    def __init__(self, each: float, most_seconds: float | None) -> None:
        self._each = each
        self._most_seconds = most_seconds

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        wanted = needed(
            context.current_num_replicas,
            context.total_num_requests,
            sum(reported.get(WAITING, {}).values()),
            max(reported.get(FIRST_TOKEN, {}).values(), default=0.0),
            each=self._each,
            most_seconds=self._most_seconds,
        )
        return wanted, {}
