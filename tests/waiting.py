"""Waiting for a condition instead of for a time: `until` for threads, `until_async` for tasks.

The bound is far beyond what any condition takes on a busy machine; it only ends a test that hangs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BOUND_SECONDS = 60.0


def until(condition: Callable[[], object], seconds: float = BOUND_SECONDS) -> None:
    """Return when `condition` is true; AssertionError where it is not in so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s: {condition}"
        time.sleep(0.01)


async def until_async(condition: Callable[[], object], seconds: float = BOUND_SECONDS) -> None:
    """`until` on an event loop, whose other tasks run meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s: {condition}"
        await asyncio.sleep(0.001)
