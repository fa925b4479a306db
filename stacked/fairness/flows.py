"""What waits for an engine: requests, in flows of one share to one adapter, in a lane for each."""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field

from stacked.fairness.order import Order
from stacked.fairness.shares import Share

# What is expected of a flow's first answer: much, as what was not used is given back at its end.
_FIRST_ANSWER = 256.0


class State(enum.Enum):
    WAITING = "waiting"  # not let in
    READING = "reading"  # let in; the engine has not answered with a token
    ANSWERING = "answering"  # the engine has read its prompt, or reads it in pieces
    GONE = "gone"  # ended, or waits no longer


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of an engine: sequences that run at once, distinct adapters in them, tokens of a step."""

    seats: int
    slots: int
    step: int


@dataclass(slots=True, eq=False)
class Ticket:
    """One request: `prompt` tokens to read, and `seats` answers of at most `most` tokens each."""

    share: Share
    adapter: int | None = None
    prompt: int = 1
    most: int | None = None
    seats: int = 1
    rank: int = field(default=0, init=False)
    """Once let in: its place in the engine's own queue, least first."""
    state: State = field(default=State.WAITING, init=False)
    flow: Flow = field(init=False, repr=False)
    expected: float = field(default=0.0, init=False)
    """Tokens of the prompt that the engine has to compute."""
    charge: float = field(default=0.0, init=False)
    """What its flow was charged, in tokens, and the flow's part of the engine then."""
    part: float = field(default=1.0, init=False)

    @property
    def waits(self) -> bool:
        return self.state is State.WAITING


class Flow:
    """Requests of one share to one adapter, in the order in which they came."""

    def __init__(self, share: Share, adapter: int | None, time: float = 0.0) -> None:
        self.share = share
        self.name = (share, adapter)
        self.lane = Lane(adapter)
        self.time = time
        self.waiting: OrderedDict[Ticket, None] = OrderedDict()
        self.running = 0
        self.computed = 1.0
        """The part of its prompts that the engine has to compute; the rest is in its cache."""
        self.answer = _FIRST_ANSWER
        """Tokens of its answers."""

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting


class Lane:
    """The waiting flows to one adapter, or to the base, which needs no slot."""

    def __init__(self, adapter: int | None) -> None:
        self.adapter = adapter
        self.flows: Order[Flow] = Order()
        self.running = 0
        self.closing = False
        """Whether it lets no more in, so that its slot becomes free."""
        self.since = 0.0
        """When it got its slot."""
        self.turns = self.served = 0.0
        """Requests and tokens that were let in since then, over what is due to its flows."""

    @property
    def open(self) -> bool:
        """Whether a request needs no other slot than what it has."""
        return self.adapter is None or (self.running > 0 and not self.closing)
