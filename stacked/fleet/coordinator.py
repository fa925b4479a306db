"""What carries an update on: the coordinator's own steps, and an end to it when that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stacked.fleet.shared import Abort, Advance, Evict, Fleet, Operation, Report, Stage, View


@dataclass(frozen=True, slots=True)
class Timings:
    """All in seconds."""

    lease: float = 3.0
    """How long a replica may admit requests after it sent a report that was stored."""
    drift: float = 0.5
    """How much longer others wait, as clocks do not run equally fast."""
    beat: float = 1.0
    hold: float = 2.0
    """How long requests wait for the others at a switch."""
    poll: float = 0.05
    """Between two looks while an update is under way."""
    prepare: float = 600.0
    """How long the slowest replica may take to load and verify a group."""


@dataclass(slots=True)
class _Watched:
    """The beat of a member, and since when it is known."""

    id: str
    beat: int | None
    since: float


class Coordinator:
    """What a replica has seen of the others, and what follows for the update under way."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._fence: int | None = None
        self._since = self._seen_at = 0.0
        self._lead = _Watched("", None, 0.0)
        self._members: dict[str, _Watched] = {}

    def saw(self, fleet: Fleet, view: View, sent_at: float, now: float) -> None:
        """This is what the store had, asked at `sent_at`."""
        self._seen_at = sent_at
        if fleet.fence != self._fence:
            self._fence, self._since = fleet.fence, now
        lead = fleet.coordinator, view.lead
        if lead != (self._lead.id, self._lead.beat):
            self._lead = _Watched(*lead, now)
        for each in view.members:
            known = self._members.get(each.id)
            if known is None or known.beat != each.beat:
                self._members[each.id] = _Watched(each.id, each.beat, now)
        there = {each.id for each in view.members}
        self._members = {id: seen for id, seen in self._members.items() if id in there}

    def end(self, fleet: Fleet) -> Operation | None:
        """An end to an update that nobody carries on."""
        if fleet.at_rest or not self.gone:
            return None
        return Abort(fleet.fence, "the replica that ran the update is gone")

    @property
    def gone(self) -> bool:
        """Whether the replica that ran the newest update is no member, or has been silent."""
        return self._silent(self._lead)

    def push(self, fleet: Fleet, id: str, members: Sequence[Report]) -> Operation | None:
        """What the coordinator with this id does for its update."""
        for each in members:
            if each.refused == fleet.fence:
                return Abort(fleet.fence, f"replica {each.name}: {each.reason}")
        for each in members:
            if each.id != id and self._silent(self._members[each.id]):
                return Evict(each.id, each.beat)
        preparing = fleet.stage is Stage.PREPARING
        missing = [m for m in members if (m.ready if preparing else m.held) != fleet.fence]
        if not missing:
            return Advance(fleet.fence)
        seconds = self._timings.prepare
        if preparing and self._seen_at - self._since >= seconds:
            names = ", ".join(sorted(each.name for each in missing))
            return Abort(fleet.fence, f"not prepared within {seconds:g} s: replica {names}")
        return None

    def _silent(self, watched: _Watched) -> bool:
        """Whether the lease of a member is over by any clock that keeps the bound on drift.

        Its last report was stored before it was first seen here, and sent before that.
        """
        past = self._seen_at - watched.since >= self._timings.lease + self._timings.drift
        return watched.beat is None or past
