"""How many replicas there are to be. Pure; Ray Serve asks it every few seconds.

Within bounds, which the deployment's scaling policy says, or else the file that was deployed, it is
as many as the requests of now need. Bounds are followed at once, requests after a delay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WAITING, FIRST_TOKEN = "waiting", "first_token"
"""What each replica reports: requests in its engine's queue, and seconds to a stream's start."""

LEAST, MOST, SINCE = "least", "most", "since"
"""And what it has read of the scaling policy in the records: bounds, 0 where there is none, and
when the record was changed that says so."""

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


def said(reports: Mapping[str, Mapping[Any, Any]]) -> tuple[int, int] | None:
    """The bounds in the newest record that a replica has read; None: nobody has read one.

    `reports` are Ray's series by name and replica. Replicas read the records at different times.
    """
    series = [reports.get(name, {}) for name in (SINCE, LEAST, MOST)]
    read = [each for each in series[0] if all(some.get(each) for some in series)]
    if not read:
        return None
    _, least, most = max(tuple(some[each][-1].value for some in series) for each in read)
    return int(least), int(most)


class Policy:
    """What Ray Serve calls with its `AutoscalingContext`. The file's settings; seconds."""

    def __init__(
        self,
        least: int,
        most: int,
        each: float,
        most_seconds: float | None,
        up_after: float,
        down_after: float,
    ) -> None:
        self._bounds = (least, most)
        self._each, self._most_seconds = each, most_seconds
        self._up_after, self._down_after = up_after, down_after
        self._way, self._since = 0, 0.0

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        target = context.target_num_replicas
        bounds = said(context.raw_metrics or {})
        if bounds is None:  # all of them start, or Ray's controller does: nobody knows better
            return float(target), {}
        least, most = bounds if bounds[0] else self._bounds
        target = min(max(target, least), most)
        wanted = min(max(math.ceil(self._needed(context)), least), most)
        return float(self._delayed(target, wanted, context.current_time)), {}

    def _needed(self, context: Any) -> float:
        reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        return needed(
            context.current_num_replicas,
            context.total_num_requests,
            sum(reported.get(WAITING, {}).values()),
            max(reported.get(FIRST_TOKEN, {}).values(), default=0.0),
            each=self._each,
            most_seconds=self._most_seconds,
        )

    def _delayed(self, target: int, wanted: int, now: float) -> int:
        """`target`, or what was needed in the same direction for as long as the file has it."""
        way = (wanted > target) - (wanted < target)
        if way != self._way:
            self._way, self._since = way, now
        if way == 0 or now - self._since < (self._up_after if way > 0 else self._down_after):
            return target
        self._way = 0
        return wanted
