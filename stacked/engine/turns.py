"""Turns of requests at the engine: each waits here until `stacked.fairness` lets it in.

vLLM would pass over requests of an adapter without a slot for as long as others come, and would
read prompts in the order in which they came. Here no more are let in than the engine has slots,
sequences and steps for, and its own queue, which stays short, is in the same order.

Relies on `AsyncLLM.vllm_config`, and on `.output_processor`: its method `process_outputs` is called
after each step, and its `external_req_ids` and `request_states` say which prompts have been read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from stacked.config import FairnessConfig
from stacked.fairness import Capacity, FairQueue, Share, Ticket

_NOBODY = Share()

share: ContextVar[Share] = ContextVar("stacked_share", default=_NOBODY)
"""Whose request it is. Those that do not come through the server are nobody's."""


@contextmanager
def urgent() -> Iterator[None]:
    """Requests within the block are the server's own, which do not wait their turn."""
    before = share.set(Share(urgent=True))
    try:
        yield
    finally:
        share.reset(before)


class Turns:
    """Requests from `wait` to `leave`, on one event loop."""

    def __init__(self, capacity: Capacity, config: FairnessConfig, processor: Any) -> None:
        """`processor` is vLLM's, see above."""
        self._queue = FairQueue(
            capacity,
            batch_share=config.batch_share,
            longest_wait=config.longest_wait_seconds,
        )
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self._reading: dict[Ticket, str] = {}
        self._processor = processor
        self.crowded: Callable[[], object] | None = None
        """Called whenever a request has to wait."""
        process = processor.process_outputs

        def processed(*args: Any, **kwargs: Any) -> Any:
            result = process(*args, **kwargs)
            if self._queue.waiting:
                self._let_in()
            return result

        processor.process_outputs = processed

    @property
    def slot_changes(self) -> int:
        """How many adapters have taken the place of another one in a slot."""
        return self._queue.slot_changes

    def waiting(self) -> Mapping[str, int]:
        """How many requests wait, of each key that has any."""
        return self._queue.waiting_by_key()

    async def wait(self, ticket: Ticket, id: str) -> None:
        """Return once this request may run; `id` is vLLM's. Follow with `leave`, also if cancelled.

        A request of an engine that has died waits only for those before it to fail.
        """
        self._queue.ask(ticket, time.monotonic())
        self._let_in()
        if ticket.waits:
            self._waiters[ticket] = asyncio.get_running_loop().create_future()
            if self.crowded is not None:
                self.crowded()
            try:
                await self._waiters[ticket]
            finally:
                del self._waiters[ticket]
        self._reading[ticket] = id

    def leave(self, ticket: Ticket, computed: int | None = None, answered: int = 0) -> None:
        """A request has ended; `computed` of its prompt's tokens, None if that is not known."""
        self._reading.pop(ticket, None)
        self._queue.leave(ticket, computed, answered)
        if self._queue.waiting:
            self._let_in()

    def _let_in(self) -> None:
        now = time.monotonic()
        noted = False
        while self._queue.waiting:
            ticket = self._queue.next(now)
            if ticket is not None:
                waiter = self._waiters.get(ticket)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            elif noted:
                return
            else:  # looked up only where it may make room
                self._note_read()
                noted = True

    def _note_read(self) -> None:
        """Note whose prompts the engine has read."""
        ids, states = self._processor.external_req_ids, self._processor.request_states
        for ticket, id in [*self._reading.items()]:
            own = [states[each] for each in ids.get(id, ()) if each in states]
            if own and not any(each.is_prefilling for each in own):
                del self._reading[ticket]
                self._queue.read(ticket)


def turns_of(client: Any, config: FairnessConfig) -> Turns | None:
    """The turns at vLLM's client; None if requests take none."""
    if not config.enabled:
        return None
    settings = client.vllm_config
    scheduler, lora = settings.scheduler_config, settings.lora_config
    engines = settings.parallel_config.data_parallel_size
    capacity = Capacity(
        seats=scheduler.max_num_seqs * engines,
        slots=lora.max_loras if lora else 1,  # without, no request has an adapter
        step=scheduler.max_num_batched_tokens * engines,
    )
    return Turns(capacity, config, client.output_processor)


def ticket_of(prompt: Any, params: Any, adapter: Any) -> Ticket:
    """The ticket of a call of vLLM's `generate` or `encode` with these arguments."""
    return Ticket(
        share.get(),
        adapter.lora_int_id if adapter is not None else None,
        prompt=_length(prompt),
        most=getattr(params, "max_tokens", 0),  # a pooling request has neither
        seats=getattr(params, "n", 1),
    )


def _length(prompt: Any) -> int:
    """The tokens of a prompt; of a text, about as many."""
    if isinstance(prompt, str):
        return 1 + len(prompt) // 4
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    return len(ids) if ids is not None else 1
