"""Whose request runs next: start-time fair queueing over flows, with a slot for each adapter.

A flow is what one caller sends to one adapter. Each has a virtual time: the tokens that it was let
in with, over its share. The flow with the least is next; one that was idle begins at the virtual
time of whoever was let in last, so that nobody saves up. The base needs no slot. While an adapter
without a slot waits, one that has been served more lets no more requests in, and its slot is free
once those in flight have ended.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

from stacked.fairness.flows import Capacity, Flow, Lane, State, Ticket
from stacked.fairness.order import Order
from stacked.fairness.shares import Share, Shares

# A token of an answer takes a row of a step for itself; those of a prompt are read many at once.
ANSWER_COST = 2.0
# Sequences that only flows without one in flight may begin: one in so many.
_RESERVE = 32
# Prompts that the engine may have before it: with less than two, or so many steps' worth, it would
# read fewer tokens than it can while the next ones are on their way. Twice that for a newcomer.
_STEPS_AHEAD, _PROMPTS_AHEAD = 4, 2
# One in so many slots is being emptied for another adapter at a time: a slot that is emptied runs
# fewer and fewer sequences.
_SLOTS_AT_ONCE = 4
# Requests that an adapter is served for each that it has in flight, before it gives up its slot,
# if that takes no longer than the longest wait. What a slot loses while it is emptied is about one
# for each. Simulated with steps of one length, 12 adapters of 3 to 16 clients in 4 slots: 12 cost
# 3 to 9 % of the throughput; 40 cost 2 to 3 %, with waits 2.7 times as long.
_LEAST_TURNS = 40
# One in so many requests may be a flow's that has waited for the longest time allowed.
_OVERDUE_TURNS = 4
# How much the last request counts in what is expected of the next of its flow.
_NEWEST = 0.2


class FairQueue:
    """Requests from `ask` to `leave`; `next` lets in one after another while there is room."""

    def __init__(
        self, capacity: Capacity, *, batch_share: float = 0.1, longest_wait: float = 10.0
    ) -> None:
        """`longest_wait`: after so many seconds a flow's turn comes whatever its weight is."""
        self.capacity = capacity
        self.waiting = 0
        self.slot_changes = 0
        self._longest_wait = longest_wait
        self._shares = Shares(batch_share)
        self._flows: dict[tuple[Share, int | None], Flow] = {}
        self._ahead: Order[Flow] = Order()  # idle flows whose time is later than now's
        self._lanes: dict[int | None, Lane] = {}
        self._ready: Order[Lane] = Order()
        self._outside: Order[Lane] = Order()  # those without a slot
        self._resident: dict[Lane, None] = {}  # those with one, the longest first
        self._slots: OrderedDict[int, None] = OrderedDict()  # what the engine has in them
        self._since: OrderedDict[Flow, float] = OrderedDict()  # the longest unserved first
        self._newest = Flow(Share(), None)  # the last that began to wait
        self._time = 0.0
        self._seated = 0
        self._reading = 0.0
        self._prompts = 0
        self._passed = 0.0  # tokens of prompts let in so far
        self._turns = 0
        self._forgave = -_OVERDUE_TURNS

    @property
    def adapters(self) -> int:
        """Distinct adapters in flight."""
        return len(self._resident)

    def waiting_by_key(self) -> Counter[str]:
        """How many requests wait, of each key that has any."""
        found: Counter[str] = Counter()
        for flow in self._since:
            found[flow.share.key] += len(flow.waiting)
        return found

    def ask(self, ticket: Ticket, now: float) -> None:
        """A request waits from now on. Follow with `next`, and in the end with `leave`."""
        flow = ticket.flow = self._flow(ticket)
        if flow.idle:
            self._ahead.remove(flow)
            flow.time = -math.inf if ticket.share.urgent else max(flow.time, self._time)
            self._shares.begin(flow.share)
        flow.waiting[ticket] = None
        self.waiting += 1
        if len(flow.waiting) == 1:
            self._since[flow] = now
            self._newest = flow
            flow.lane = self._lanes.setdefault(ticket.adapter, Lane(ticket.adapter))
            self._list(flow)

    def next(self, now: float) -> Ticket | None:
        """Let in the request whose turn it is; None if none may run now."""
        if not self.waiting:
            return None
        self._forgive(now)
        self._close_one(now)
        least = self._least()
        if least is None:
            return None
        for flow in (least, self._newest):
            # A newcomer has nothing in flight, and has had no more than the others.
            early = flow.waiting and flow.time <= max(self._time, least.time)
            new = bool(early and not flow.running and not flow.share.batch)
            if flow.waiting and self._may(flow, new):
                return self._let_in(flow, now, new)
        return None

    def read(self, ticket: Ticket) -> None:
        """The engine has read the prompt. Calling twice is allowed."""
        if ticket.state is State.READING:
            ticket.state = State.ANSWERING
            self._reading -= ticket.expected
            self._prompts -= 1

    def leave(self, ticket: Ticket, computed: int | None = None, answered: int = 0) -> None:
        """A request has ended, or waits no longer. Once.

        What it took: the tokens of its prompt that were computed (None: what was expected of it
        all) and of its answers.
        """
        flow = ticket.flow
        if ticket.state is State.WAITING:
            del flow.waiting[ticket]
            self.waiting -= 1
            self._list(flow)
        else:
            self.read(ticket)
            self._seated -= ticket.seats
            flow.running -= 1
            flow.lane.running -= 1
            if computed is not None:
                self._correct(flow, ticket, computed, answered)
            self._list(flow)
        ticket.state = State.GONE
        if flow.idle:
            self._rest(flow)

    # -- whose turn it is -------------------------------------------------------------------

    def _least(self) -> Flow | None:
        """The flow with the least virtual time among those that have a slot or find one free."""
        firsts = [self._ready.first()]
        if self._slot_free:
            firsts.append(self._outside.first())
        found = [first for first in firsts if first is not None]
        if not found:
            return None
        _, lane = min(found, key=lambda first: first[0])
        first = lane.flows.first()
        return first[1] if first else None

    @property
    def _slot_free(self) -> bool:
        return len(self._resident) < self.capacity.slots

    def _may(self, flow: Flow, new: bool) -> bool:
        """Whether there is room for the first request of a flow; for a new one is a little more."""
        if not flow.lane.open and (flow.lane.running or not self._slot_free):
            return False
        if flow.share.urgent:
            return True
        seats = self.capacity.seats - (0 if new else self.capacity.seats // _RESERVE)
        times = 2 if new else 1
        little = self._prompts < times * _PROMPTS_AHEAD
        return self._seated < seats and (little or self._reading < times * self._read_ahead)

    @property
    def _read_ahead(self) -> int:
        return _STEPS_AHEAD * self.capacity.step

    def _forgive(self, now: float) -> None:
        """Have the flow that has waited longest forget what it is ahead, if that is too long."""
        if self._turns - self._forgave < _OVERDUE_TURNS or not self._since:
            return
        flow, since = next(iter(self._since.items()))
        if now - since < self._longest_wait:
            return
        self._forgave = self._turns
        self._since[flow] = now
        self._since.move_to_end(flow)
        flow.time = min(flow.time, self._time)
        self._list(flow)

    # -- slots ------------------------------------------------------------------------------

    def _close_one(self, now: float) -> None:
        """Have an adapter give its slot to one that waits.

        Not before it has had its turn, so that slots are rarely copied and rarely half empty.
        """
        claim = self._outside.first()
        if claim is None:
            for lane in [lane for lane in self._resident if lane.closing]:
                lane.closing = False
                self._place(lane)
            return
        time, _ = claim
        if self._slot_free or time > self._time:
            return
        at_once = min(len(self._outside), max(1, self.capacity.slots // _SLOTS_AT_ONCE))
        urgent = time == -math.inf
        over = [each for each in self._resident if urgent or self._has_had_its_turn(each, now)]
        if over and sum(each.closing for each in self._resident) < at_once:
            lane = max(over, key=lambda each: (not each.closing, each.served))
            lane.closing = True
            self._place(lane)

    def _has_had_its_turn(self, lane: Lane, now: float) -> bool:
        """Whether it was served a step's worth of tokens, and some requests for each in flight."""
        enough = lane.turns >= _LEAST_TURNS * lane.running and lane.served >= self.capacity.step
        return enough or now - lane.since >= self._longest_wait

    def _take_slot(self, lane: Lane, adapter: int, now: float) -> None:
        lane.served, lane.turns, lane.since = 0.0, 0.0, now
        self._resident[lane] = None
        self.slot_changes += adapter not in self._slots
        self._slots[adapter] = None
        self._slots.move_to_end(adapter)
        if len(self._slots) > self.capacity.slots:  # as the engine: the least recently used
            self._slots.popitem(last=False)

    def _place(self, lane: Lane) -> None:
        """Where a lane waits, after any change of it."""
        first = lane.flows.first()
        self._ready.remove(lane)
        self._outside.remove(lane)
        if not lane.running:
            self._resident.pop(lane, None)
            lane.closing = False
            if first is None:
                self._lanes.pop(lane.adapter, None)
        if first is not None and lane.open:
            self._ready.put(lane, first[0])
        elif first is not None and not lane.running:
            self._outside.put(lane, first[0])

    # -- flows ------------------------------------------------------------------------------

    def _flow(self, ticket: Ticket) -> Flow:
        name = (ticket.share, ticket.adapter)
        if name not in self._flows:
            self._flows[name] = Flow(*name, self._time)
        return self._flows[name]

    def _list(self, flow: Flow) -> None:
        """Where a flow waits in its lane, after any change of it."""
        if flow.waiting:
            flow.lane.flows.put(flow, flow.time)
        else:
            flow.lane.flows.remove(flow)
            self._since.pop(flow, None)
        self._place(flow.lane)

    def _let_in(self, flow: Flow, now: float, new: bool) -> Ticket:
        ticket, _ = flow.waiting.popitem(last=False)
        lane = flow.lane
        answer = flow.answer if ticket.most is None else min(flow.answer, ticket.most)
        ticket.expected = flow.computed * ticket.prompt
        ticket.charge = ticket.expected + ANSWER_COST * answer * ticket.seats
        ticket.part = self._shares.of(flow.share)
        ticket.rank = self._rank(flow.share, new)
        # Nobody's prompt waits for one that is read in pieces.
        ticket.state = State.ANSWERING if flow.share.background else State.READING
        if lane.adapter is not None and not lane.running:
            self._take_slot(lane, lane.adapter, now)
        cost = ticket.charge / ticket.part
        due = ticket.part * len(self._shares) * len(lane.flows)
        lane.served += ticket.charge / due
        lane.turns += 1 / due
        if not flow.share.urgent:
            # Who waited for a slot is owed no more than a request: seats are shared from now on.
            flow.time = max(flow.time, self._time - cost)
            self._time = max(self._time, flow.time)
            flow.time += cost
        self._passed += ticket.expected
        if ticket.state is State.READING:
            self._reading += ticket.expected
            self._prompts += 1
        self._seated += ticket.seats
        self._turns += 1
        self.waiting -= 1
        flow.running += 1
        lane.running += 1
        if flow.waiting:
            self._since[flow] = now
            self._since.move_to_end(flow)
        self._list(flow)
        return ticket

    def _rank(self, share: Share, new: bool) -> int:
        """The place in the engine's queue: a newcomer's is before all that was not read so far.

        Within bounds, so that no stream of newcomers can keep others there for ever.
        """
        if new or share.urgent:
            return int(self._passed - min(self._reading, _STEPS_AHEAD * self._read_ahead)) - 1
        return int(self._passed) + (self._read_ahead if share.batch else 0)

    def _correct(self, flow: Flow, ticket: Ticket, computed: int, answered: int) -> None:
        """Charge what a request has taken instead of what was expected, and expect that next."""
        spent = computed + ANSWER_COST * answered
        flow.time += (spent - ticket.charge) / ticket.part
        if ticket.prompt:
            flow.computed += _NEWEST * (min(1.0, computed / ticket.prompt) - flow.computed)
        flow.answer += _NEWEST * (answered / ticket.seats - flow.answer)

    def _rest(self, flow: Flow) -> None:
        """Forget an idle flow once it would begin as a new one does."""
        self._shares.end(flow.share)
        self._ahead.put(flow, flow.time)
        while (first := self._ahead.first()) and first[0] <= self._time:
            self._ahead.remove(first[1])
            self._flows.pop(first[1].name)
