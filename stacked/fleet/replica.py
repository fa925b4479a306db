"""One replica's part in the fleet: what to send to the store, what to do here, what to admit.

A pure state machine. It gets answers and the time, and never asks for them; the clock is the
replica's own and need not agree with any other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from stacked.fleet.coordinator import Coordinator
from stacked.fleet.coordinator import Timings as Timings
from stacked.fleet.shared import (
    Abort,
    Beat,
    Fleet,
    Found,
    Join,
    Leave,
    Look,
    Mode,
    Operation,
    Propose,
    Report,
    Stage,
    View,
)

# The reason of an update that was followed by others before this replica heard of its end: it may
# have happened.
UNKNOWN = "this replica heard nothing of it until later updates had been made"


@dataclass(frozen=True, slots=True)
class Load:
    """Serve this generation's group; nothing is admitted meanwhile."""

    generation: int
    group: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Load and verify the group of an update next to the one that serves."""

    fence: int
    group: str


@dataclass(frozen=True, slots=True)
class Switch:
    """Serve what was prepared for this update."""

    fence: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Undo what was, or is being, prepared for this update."""

    fence: int


Work = Load | Prepare | Switch | Drop


@dataclass(frozen=True, slots=True)
class Call:
    """An operation to carry out in the store for the member with this id."""

    number: int
    id: str
    operation: Operation


class Gate(enum.Enum):
    """Whether requests are admitted."""

    OPEN = "open"
    HELD = "held"  # they wait
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update that was proposed here has ended; `reason` says why it did not happen."""

    proposal: str
    fence: int
    reason: str = ""


@dataclass(slots=True)
class _Wish:
    """An update that is to be proposed, or has been."""

    proposal: str
    target: str
    fence: int = 0
    """Its number; 0 until it is known."""
    sent: bool = False
    withdrawn: str = ""
    """Why it is not to happen any more."""


class Replica:
    """The state machine of one process.

    Ask it for the next `call` and for new `work`, and give it their answers; it has one of each
    under way at most. `group` is what founds the fleet if there is none, as `generation`.
    """

    def __init__(
        self,
        name: str,
        process: str,
        group: str,
        *,
        generation: int = 1,
        mode: Mode = Mode.GLOBAL,
        timings: Timings | None = None,
    ) -> None:
        """`process` must differ from that of every process before, also of the same name."""
        self.name, self._process = name, process
        self.timings = timings or Timings()
        self._founding = Fleet(mode, generation, group, fence=generation)
        self.view = View(None, None, None, ())
        self.generation = 0
        """The generation that is loaded here; 0: none."""
        self.ready = 0
        self.held = 0
        self.lease_until = float("-inf")
        self.outcome: Outcome | None = None
        """Of the last update that was proposed here."""
        self.leaving = False
        self._stays, self._beat = 1, 0
        self._refused, self._reason = 0, ""
        self._held_at = 0.0
        self._call: Call | None = None
        self._calls, self._sent_at = 0, 0.0
        self._beat_at = self._look_at = self._load_at = self._rest_until = float("-inf")
        self._work: Work | None = None
        self._begun = False
        self._wish: _Wish | None = None
        self._coordinator = Coordinator(self.timings)

    # -- what it is now ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        return f"{self.name}/{self._process}/{self._stays}"

    @property
    def member(self) -> bool:
        """Whether it is one, as far as it knows."""
        return self.view.mine is not None

    def gate(self, now: float) -> Gate:
        """Whether a request is admitted to the generation that is loaded here."""
        if self._resigns or not self.member or now >= self.lease_until:
            return Gate.CLOSED
        return Gate.HELD if self.held else Gate.OPEN

    def cut_off(self, now: float) -> bool:
        """Whether its lease is over, and nothing else keeps requests out."""
        return self.member and not self._resigns and now >= self.lease_until

    @property
    def _resigns(self) -> bool:
        """Whether it must be a member no longer."""
        return self.leaving or not self._current

    @property
    def _current(self) -> bool:
        """Whether it has what is committed."""
        fleet = self.view.fleet
        fits = fleet is not None and fleet.generation in (self.generation, self.ready)
        return fits and self.generation > 0

    @property
    def orphaned(self) -> bool:
        """Whether the newest update has ended, and whoever ran it does not say so."""
        fleet = self.view.fleet
        ended = fleet is not None and fleet.at_rest and fleet.coordinator != self.id
        return ended and self._coordinator.gone

    def wake_at(self) -> float:
        """When it has something to send at the latest, if nothing happens before."""
        if self._call is not None:
            return float("inf")
        beats = self.member and not self._resigns
        due = min(self._beat_at, self._look_at) if beats else self._look_at
        return max(due, self._rest_until)

    # -- the store --------------------------------------------------------------------------

    def call(self, now: float) -> Call | None:
        """The next operation, if there is one now and none is under way."""
        if self._call is not None or now < self._rest_until:
            return None
        operation = self._next(now)
        if operation is None:
            return None
        if isinstance(operation, Join | Beat):
            self._beat_at, self._beat = now + self.timings.beat, self._beat + 1
        if isinstance(operation, Propose) and self._wish is not None:
            self._wish.sent = True
        self._look_at = now + self._pace
        self._calls += 1
        self._call, self._sent_at = Call(self._calls, self.id, operation), now
        return self._call

    @property
    def _pace(self) -> float:
        """Between two looks. A member's reports are looks too."""
        fleet = self.view.fleet
        calm = fleet is None or fleet.at_rest
        return self.timings.beat if calm else self.timings.poll

    def _next(self, now: float) -> Operation | None:
        fleet, look = self.view.fleet, Look() if now >= self._look_at else None
        if fleet is None:
            return look if not self._calls else look and Found(self._founding)
        mine, report = self.view.mine, self._report()
        if mine is None:
            joins = look and fleet.at_rest and not self._resigns and not self.ready
            return Join(report) if joins else self._coordinator.end(fleet) or look
        if self._resigns:
            return Leave(self.id)
        if now >= self._beat_at or replace(report, beat=mine.beat) != mine:
            return Beat(report)
        if self.held == fleet.fence and now - self._held_at >= self.timings.hold:
            seconds = self.timings.hold
            return Abort(fleet.fence, f"not every replica held its requests within {seconds:g} s")
        if fleet.at_rest:
            return self._wished(fleet) or look
        leads = fleet.coordinator == self.id
        return self._coordinator.end(fleet) or (self._push(fleet) if leads else None) or look

    def _report(self) -> Report:
        """The next report."""
        return Report(
            self.id,
            self.name,
            self._beat + 1,
            self.generation,
            self.ready,
            self.held,
            self._refused,
            self._reason,
        )

    def _wished(self, fleet: Fleet) -> Operation | None:
        wish = self._wish
        if wish is None or wish.fence:
            return None
        return Propose(self.id, wish.proposal, wish.target, fleet.fence)

    def _push(self, fleet: Fleet) -> Operation | None:
        return self._coordinator.push(fleet, self.id, self.view.members)

    def answered(self, call: Call, view: View, now: float) -> None:
        """A call was carried out, and this is what the store then had."""
        if call is not self._call:
            return  # given up before
        self._call = None
        renews = isinstance(call.operation, Join | Beat) and view.mine is not None
        if renews:
            self.lease_until = max(self.lease_until, self._sent_at + self.timings.lease)
        was_member, before, self.view = self.member, self.view.fleet, view
        if was_member and view.mine is None:
            self._excluded()
        fleet = view.fleet
        if fleet is None:
            return
        if before is None or before.fence != fleet.fence:
            self._look_at = min(self._look_at, now + self._pace)
        self._coordinator.saw(fleet, view, self._sent_at, now)
        self._follow(call.operation, fleet)
        self._decide(fleet, now)

    def unanswered(self, call: Call, now: float) -> None:
        """Whether a call was carried out is not known."""
        if call is self._call:
            self._call, self._rest_until = None, now + self.timings.poll

    def _excluded(self) -> None:
        self._stays += 1
        self.held = self._refused = 0

    # -- what is done here ------------------------------------------------------------------

    def work(self) -> Work | None:
        """New work, once. It takes the place of what is under way: only Drop does that."""
        if self._work is None or self._begun:
            return None
        self._begun = True
        return self._work

    @property
    def under_way(self) -> Work | None:
        """What is to be done here, or is being done."""
        return self._work

    def _decide(self, fleet: Fleet, now: float) -> None:
        """What this view of the fleet means for what is loaded here."""
        if isinstance(self._work, Switch | Drop | Load):
            return
        prepared = self._work.fence if isinstance(self._work, Prepare) else self.ready
        current = fleet.fence == prepared and fleet.stage is not Stage.ABORTED and self.member
        if self.ready and fleet.generation == self.ready:
            self._do(Switch(self.ready))
        elif prepared and not current:
            self.held = self.ready = 0
            self._do(Drop(prepared))
        elif prepared:
            if fleet.stage is Stage.PREPARED and self.held != prepared:
                self.held, self._held_at = prepared, now
        elif not self.member:
            if self.generation != fleet.generation and now >= self._load_at:
                self._do(Load(fleet.generation, fleet.group))
        elif fleet.stage is Stage.PREPARING and fleet.fence != self._refused and self.generation:
            self._do(Prepare(fleet.fence, fleet.target))

    def _do(self, work: Work) -> None:
        self._work, self._begun = work, False

    def done(self, work: Work, now: float) -> None:
        """This work has succeeded."""
        if work is not self._work:
            return  # given up before
        self._work = None
        match work:
            case Load(generation, _):
                self.generation = generation
            case Prepare(fence, _):
                self.ready = fence
            case Switch(fence):
                self.generation, self.ready, self.held = fence, 0, 0
            case Drop():
                self.ready = 0
        if self.view.fleet is not None:
            self._decide(self.view.fleet, now)

    def failed(self, work: Work, reason: str, now: float) -> None:
        """This work, Load or Prepare, has failed and left what was there before."""
        if work is not self._work:
            return
        self._work = None
        if isinstance(work, Prepare):
            self._refused, self._reason = work.fence, reason
        self._load_at = now + self.timings.beat

    def lost(self) -> None:
        """Nothing is loaded here any more: the engine has died, or a switch has failed."""
        self._work = None
        self.generation = self.ready = self.held = 0

    # -- requests of people -----------------------------------------------------------------

    def propose(self, proposal: str, target: str) -> None:
        """Begin an update of the fleet; follow `outcome`. One at a time."""
        self.outcome, self._wish = None, _Wish(proposal, target)
        fleet = self.view.fleet
        if fleet is None or not self.member:
            self._end_wish("this replica is not a member of its fleet now; try again, or another")
        elif not fleet.at_rest:
            self._end_wish("another update of the fleet is under way; try again when it has ended")

    def withdraw(self, reason: str) -> None:
        """Give up the update that was proposed here; call no more once it was to advance."""
        wish = self._wish
        if wish is None:
            return
        if not wish.sent:
            self._end_wish(reason)
            return
        # One that was sent may still begin, and is refused then.
        wish.withdrawn = reason
        self._refuse_withdrawn(wish)

    def _refuse_withdrawn(self, wish: _Wish) -> None:
        if wish.fence and wish.withdrawn:
            self._refused, self._reason = wish.fence, wish.withdrawn

    def hurry(self) -> None:
        """Look at the store now: an update is about to be proposed."""
        self._look_at = float("-inf")

    def leave(self) -> None:
        """Admit nothing more, and be no member; `member` is then False."""
        self.leaving = True

    def _follow(self, operation: Operation, fleet: Fleet) -> None:
        """Find out what became of the update that was proposed here."""
        wish = self._wish
        if wish is None:
            return
        if fleet.proposal == wish.proposal:
            wish.fence = fleet.fence
            self._refuse_withdrawn(wish)
        if not wish.fence:
            if isinstance(operation, Propose) or not self.member:
                self._end_wish("another replica began an update first; try again when it has ended")
        elif fleet.generation == wish.fence:
            self._end_wish("")
        elif fleet.generation > wish.fence:
            self._end_wish(UNKNOWN)
        elif fleet.fence > wish.fence or fleet.stage is Stage.ABORTED:
            own = fleet.fence == wish.fence
            self._end_wish(fleet.reason if own else "it was given up, and another one has begun")

    def _end_wish(self, reason: str) -> None:
        wish, self._wish = self._wish, None
        if wish is not None:
            self.outcome = Outcome(wish.proposal, wish.fence, reason)
