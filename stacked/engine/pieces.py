"""Prompts of the server's own requests are read in pieces while clients' tokens are made.

On a CPU a step takes longer with each token that it reads, and every client waits for it. vLLM
bounds what it reads of a prompt in a step for all requests alike (`long_prefill_token_threshold`);
here the bound is set for the steps in which only such requests read, and they wait while a
client's prompt is read.

Relies on vLLM's `Scheduler.schedule`, which makes a step, and reads
`scheduler_config.long_prefill_token_threshold`, `running` (with `is_prefill_chunk` of each
request, and `next_decode_eligible_step`, before which it is passed over), `waiting` and
`current_step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

# Of the prompts of all such requests together. With 8, gaps of three streams were up to 2.3 times
# as long as their slowest in a hundred, with 4 up to 1.6 times (docs/experiments.md).
PIECE = 4
# Steps in a row in which they read nothing; otherwise clients' prompts could keep them for ever.
_LONGEST_HOLD = 16
# With more requests before the scheduler, to look at each would cost more than is won.
_MOST_WAITING = 64
_MARK = "stacked_background"


def mark(params: Any) -> None:
    """Have a request with these sampling parameters be read in pieces."""
    params.extra_args = {**(params.extra_args or {}), _MARK: True}


def _is_marked(request: Any) -> bool:
    params = request.sampling_params  # None for one of pooling
    return params is not None and _MARK in (params.extra_args or ())


class Pieces:
    """What one scheduler reads of marked requests in each step."""

    def __init__(self) -> None:
        self._held = 0

    @contextmanager
    def step(self, scheduler: Any) -> Iterator[None]:
        """Within the block a step is made."""
        waiting = scheduler.waiting
        reading = [each for each in scheduler.running if each.is_prefill_chunk]
        queued = [*waiting] if len(waiting) <= _MOST_WAITING else []
        own = [each for each in reading if _is_marked(each)]
        begin = [each for each in queued if _is_marked(each)]
        held, self._held = self._held, 0
        count = len(own) + len(begin)
        if not count or all(map(_is_marked, (*scheduler.running, *queued))):
            yield
        elif count == len(reading) + len(waiting):
            with _bounded(scheduler, PIECE // count):
                yield
        elif held < _LONGEST_HOLD:
            self._held = held + 1
            with _without(waiting, begin):
                for each in own:
                    each.next_decode_eligible_step = scheduler.current_step + 2
                yield
        else:
            yield


@contextmanager
def _without(waiting: Any, some: Sequence[Any]) -> Iterator[None]:
    waiting.remove_requests(some)
    try:
        yield
    finally:
        for each in some:
            waiting.add_request(each)


@contextmanager
def _bounded(scheduler: Any, tokens: int) -> Iterator[None]:
    """Within the block no request gets more tokens in a step than this, or than it drafts."""
    config = scheduler.scheduler_config
    before = config.long_prefill_token_threshold
    least = max(tokens, 1 + scheduler.num_spec_tokens)
    config.long_prefill_token_threshold = min(before or least, least)
    try:
        yield
    finally:
        config.long_prefill_token_threshold = before


def read_in_pieces() -> None:
    """Have this process's scheduler, if it has one, read marked requests so. Idempotent."""
    from vllm.v1.core.sched.scheduler import Scheduler

    theirs = Scheduler.schedule
    if hasattr(theirs, "__wrapped__"):
        return
    pieces = Pieces()

    @wraps(theirs)
    def schedule(scheduler: Any, *args: Any, **more: Any) -> Any:
        with pieces.step(scheduler):
            return theirs(scheduler, *args, **more)

    Scheduler.schedule = schedule
