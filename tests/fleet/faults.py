"""Where in the protocol a fault strikes a replica, and what it is.

A step is one that the rows in the database show, a statement of the coordinator's, which the way to
the database sees, or what a replica that was started again prints before it is a member.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fleet.processes import SCHEMA, Fleet, Replica, Rows

FAULTS = ("kill", "stop", "cut", "silence")
# Shorter than a hold and a poll, between a hold and a lease, and longer than both.
SECONDS = (0.3, 2.5, 5.0)
SHOWN = (
    *("at rest", "preparing", "prepared", "before its hold", "held"),
    *("before its switch", "switched", "before its drop"),
)
"""Steps in the rows."""
STATEMENTS = {
    "propose": b"PREPARING",
    "hold": b"PREPARED",
    "commit": b"COMMITTED",
    "abort": b"ABORTED",
}
STARTING = {"starting": "Checking the members", "joining": "Serving group"}
"""Steps of a replica that was killed and started again, and what it prints there: it has looked at
what is committed; it has loaded that, and is no member yet."""
# No update has a coordinator there, or it is not this one.
_OF_NOBODY = (*STARTING, "at rest")
_ABSENT = "absent"
# Only in the mode `global`.
_OF_HOLDS = ("before its hold", "held", "before hold", "after hold")


@dataclass(frozen=True, order=True)
class Case:
    """A step, and what happens to a replica in it."""

    step: str
    """Of the rows, or of a start; or "before …" and "after …" a statement."""
    fault: str
    coordinator: bool = False

    @property
    def aborts(self) -> bool:
        """Whether the update has to be one that a replica refuses."""
        return self.step in ("before its drop", "before abort", "after abort")

    def __str__(self) -> str:
        return (
            f"{self.fault} of {'the coordinator' if self.coordinator else 'another'}, {self.step}"
        )


def cases(*, session: bool = False) -> list[Case]:
    shown = [
        Case(step, fault, leads)
        for step in (*STARTING, *SHOWN)
        for fault in FAULTS
        for leads in ((False,) if step in _OF_NOBODY else (False, True))
    ]
    said = [
        Case(f"{when} {statement}", fault, True)
        for when in ("before", "after")
        for statement in STATEMENTS
        for fault in FAULTS
    ]
    return [case for case in shown + said if not (session and case.step in _OF_HOLDS)]


@dataclass
class Planner:
    """Chooses what was met least."""

    chance: random.Random
    session: bool = False
    met: Counter[Case] = field(default_factory=Counter)
    tried: Counter[Case] = field(default_factory=Counter)

    def next(self) -> Case:
        every = cases(session=self.session)
        self.chance.shuffle(every)
        case = min(every, key=lambda each: (self.met[each], self.tried[each]))
        self.tried[case] += 1
        return case

    def missing(self) -> list[str]:
        """What was not met."""
        return [str(case) for case in cases(session=self.session) if not self.met[case]]


def step_of(rows: Rows, name: str, former: str = "") -> str:
    """Where a replica is; `former`: the member that it was before it was killed."""
    fleet, one = rows.fleet, rows.members.get(name)
    if one is None or one["id"] == former:
        return _ABSENT
    fence = fleet["fence"]
    if fleet["stage"] == "PREPARING":
        return "prepared" if one["ready"] == fence else "preparing"
    if fleet["stage"] == "PREPARED":
        return "held" if one["held"] == fence else "before its hold"
    if fleet["stage"] == "ABORTED":
        return "before its drop" if one["ready"] == fence else "at rest"
    if one["generation"] != fleet["generation"]:
        return "before its switch"
    others = {each["generation"] for each in rows.members.values()}
    return "at rest" if len(others) == 1 else "switched"


def leads(rows: Rows, name: str) -> bool:
    one = rows.members.get(name)
    return one is not None and rows.fleet["coordinator"] == one["id"]


@dataclass
class Struck:
    """A fault that has happened."""

    case: Case
    """The step in which the replica was found when it stood still."""
    replica: Replica
    at: float


def strike_at_statement(case: Case, replica: Replica) -> Callable[[], Struck | None]:
    """Lie in wait; what is returned says whether it has happened."""
    when, statement = case.step.split(" ", 1)
    struck: list[Struck] = []

    def strike() -> None:
        struck.append(Struck(case, replica, time.monotonic()))
        {
            "kill": replica.kill,
            "stop": lambda: replica.signal(signal.SIGSTOP),
            "cut": replica.way.cut_now,
            "silence": replica.way.silence_now,
        }[case.fault]()

    table = f"{SCHEMA}.fleet ".encode()
    replica.way.ambush([table, STATEMENTS[statement]], when == "after", strike)
    return lambda: struck[0] if struck else None


def strike_when_shown(case: Case, fleet: Fleet, seconds: float) -> Struck | None:
    """Strike the first replica that is found in this step; None if none is in so many seconds.

    It is stopped first, so that the step that it is in is known.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rows = fleet.rows()
        for each in fleet.replicas:
            fits = case.step in _OF_NOBODY or leads(rows, each.name) == case.coordinator
            if fits and step_of(rows, each.name) == case.step:
                return strike(case, fleet, each)
    return None


def strike(case: Case, fleet: Fleet, replica: Replica, former: str = "") -> Struck:
    """Strike this one now; `former`: the member that it was, if it has been started again."""
    replica.signal(signal.SIGSTOP)
    at, rows = time.monotonic(), fleet.rows()
    step = step_of(rows, replica.name, former)
    if former and step == _ABSENT:
        step = case.step
    leading = step not in _OF_NOBODY and leads(rows, replica.name)
    found = Case(step, case.fault, leading)
    match case.fault:
        case "kill":
            replica.kill()
        case "cut":
            replica.way.cut()
        case "silence":
            replica.way.silence()
    if case.fault in ("cut", "silence"):
        replica.signal(signal.SIGCONT)
    return Struck(found, replica, at)


def end(struck: Struck, seconds: float) -> None:
    """End the fault: at once if the process was killed, which is then started as a supervisor
    does, otherwise `seconds` after it began.
    """
    replica = struck.replica
    if struck.case.fault == "kill":
        assert replica.process is not None
        replica.process.wait(60)
        replica.start()
        return
    time.sleep(max(0.0, struck.at + seconds - time.monotonic()))  # how long it lasts
    if struck.case.fault == "stop":
        replica.signal(signal.SIGCONT)
    else:
        replica.way.heal()


def table(met: Counter[Case]) -> dict[str, dict[str, int]]:
    """How often each step was met, by what happened there."""
    rows: dict[str, Counter[str]] = {}
    for case, count in sorted(met.items()):
        who = f"{case.step}{', coordinator' if case.coordinator else ''}"
        rows.setdefault(who, Counter())[case.fault] += count
    return {who: dict(counts) for who, counts in rows.items()}
