"""A simulated engine before the fair queue, in steps of virtual time: no clock, no loop."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from stacked.fairness import Capacity, FairQueue, Share, Ticket


@dataclass(frozen=True)
class Client:
    """Sends one request after another, at once when the last one has ended."""

    share: Share
    adapter: int | None = None
    prompt: int = 8
    answer: int = 8
    begins: int = 0
    """The step of its first request."""
    among: tuple[int | None, ...] = ()
    """Adapters of which each of its requests is to another one, if there are any."""

    def next(self, chance: random.Random) -> Client:
        """As whom it sends its next request."""
        if not self.among:
            return self
        adapter = chance.choice(self.among)
        return replace(self, share=Share(self.share.caller, str(adapter)), adapter=adapter)


@dataclass
class Run:
    """What happened: tokens by share, and each request's wait in steps."""

    tokens: Counter[Share] = field(default_factory=Counter)
    begun: Counter[Share] = field(default_factory=Counter)
    """What was let in, as it counts: a token of an answer as two of a prompt."""
    firsts: list[tuple[Client, int]] = field(default_factory=list)
    """Steps from each request to its first token."""
    ended: int = 0
    waits: list[tuple[Client, int]] = field(default_factory=list)
    changes: int = 0

    def first(self, wanted: Callable[[Client], bool] = lambda _: True) -> list[int]:
        return [steps for client, steps in self.firsts if wanted(client)]

    def longest(self, wanted: Callable[[Client], bool] = lambda _: True) -> int:
        return max((wait for client, wait in self.waits if wanted(client)), default=0)


class VllmOrder:
    """vLLM's own order, to compare with: as they come, but those without a slot are passed over."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.slot_changes = 0
        self._waiting: list[Ticket] = []
        self._running: Counter[int | None] = Counter()

    def ask(self, ticket: Ticket, now: float) -> None:
        self._waiting.append(ticket)

    def next(self, now: float) -> Ticket | None:
        adapters = {adapter for adapter in +self._running if adapter is not None}
        full = self._running.total() >= self.capacity.seats
        for ticket in () if full else self._waiting:
            free = ticket.adapter in (None, *adapters) or len(adapters) < self.capacity.slots
            if free:
                self._waiting.remove(ticket)
                self._running[ticket.adapter] += 1
                return ticket
        return None

    def read(self, ticket: Ticket) -> None: ...

    def leave(self, ticket: Ticket, computed: int | None = None, answered: int = 0) -> None:
        self._running[ticket.adapter] -= 1


def simulate(queue: FairQueue | VllmOrder, clients: Sequence[Client], steps: int) -> Run:
    """Each step computes one token of every answer, and prompts within the budget of a step.

    The fair queue's promises are checked at every step: slots, seats, and that nothing idles.
    """
    run, chance = Run(), random.Random(0)
    waiting: dict[Ticket, tuple[Client, int]] = {}
    running: dict[Ticket, list[int]] = {}  # tokens of the prompt and of the answer to come
    idle = list(clients)
    for now in range(steps):
        begins = [client for client in idle if client.begins <= now]
        idle = [client for client in idle if client.begins > now]
        for client in [each.next(chance) for each in begins]:
            ticket = Ticket(client.share, client.adapter, client.prompt, client.answer)
            waiting[ticket] = client, now
            queue.ask(ticket, now)
        while (let_in := queue.next(now)) is not None:
            client, since = waiting[let_in]
            running[let_in] = [client.prompt, client.answer]
            run.begun[client.share] += client.prompt + 2 * client.answer
            run.waits.append((client, now - since))
        if isinstance(queue, FairQueue):
            check(queue, [*waiting.keys() - running.keys()], [*running])
        budget = queue.capacity.step
        for each in sorted(running, key=lambda one: order(one, running[one][0])):
            left = running[each]
            part = min(left[0], budget) if left[0] else 0
            left[0] -= part
            budget -= part or 1
            if not left[0] and part:
                queue.read(each)
                run.firsts.append((waiting[each][0], now + 1 - waiting[each][1]))
            if not part and budget >= 0:
                left[1] -= 1
            if not left[1]:
                client, _ = waiting.pop(each)
                del running[each]
                queue.leave(each, client.prompt, client.answer)
                run.tokens[client.share] += client.prompt + client.answer
                run.ended += 1
                idle.append(client)
            if budget <= 0:
                break
    run.changes = queue.slot_changes
    # Who still waits has waited, too.
    for ticket in waiting.keys() - running.keys():
        client, since = waiting[ticket]
        run.waits.append((client, steps - since))
    return run


def order(ticket: Ticket, left: int) -> tuple[bool, bool, int]:
    """As vLLM: answers, then prompts that were begun, then the others in the order of ranks."""
    return left > 0, left == ticket.prompt, ticket.rank


def check(queue: FairQueue, waiting: Sequence[Ticket], running: Sequence[Ticket]) -> None:
    """Slots and seats are kept, and nobody waits who could run."""
    adapters = {ticket.adapter for ticket in running if ticket.adapter is not None}
    assert len(adapters) <= queue.capacity.slots
    assert queue.adapters == len(adapters)
    assert len(running) <= queue.capacity.seats
    assert queue.waiting == len(waiting)
    reserve = queue.capacity.seats // 32
    full = len(running) >= queue.capacity.seats - reserve
    unread = sum(ticket.expected for ticket in running if ticket.state.value == "reading")
    if full or unread >= 4 * queue.capacity.step:
        return
    for ticket in waiting:
        closing = ticket.adapter in adapters and ticket.flow.lane.closing
        blocked = ticket.adapter not in adapters and len(adapters) == queue.capacity.slots
        assert closing or (blocked and ticket.adapter is not None), "could run, and waits"


def queue(
    seats: int = 8, slots: int = 2, step: int = 32, longest_wait: float = 1e9, **more: float
) -> FairQueue:
    return FairQueue(Capacity(seats, slots, step), longest_wait=longest_wait, **more)
