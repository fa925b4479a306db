"""The storm over a fleet: three real servers, a balancer, clients, updates, and a fault at a time.

Each fault strikes at a chosen step of an update. Then all replicas must serve the same group again
by themselves, records and rows must say the same, and the next update must succeed.

python -m tests.fleet.storm --faults 200
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stacked.client import ClientError
from tests.fleet import faults
from tests.fleet.clients import Clients, Heard
from tests.fleet.faults import Case, Planner, Struck
from tests.fleet.processes import KEYS, Fleet, running_fleet
from tests.serving import START_SECONDS
from tests.waiting import until


@dataclass
class Storm:
    fleet: Fleet
    chance: random.Random
    session: bool = False
    meeting_seconds: float = 10.0
    """How long a step is waited for; in some updates it is not met."""
    heard: Heard = field(default_factory=Heard)
    groups: dict[int, Mapping[str, str]] = field(default_factory=dict)
    """What was committed: generation -> key -> secret."""
    recovered: dict[str, list[float]] = field(default_factory=dict)
    """By fault: seconds from its end to a fleet that serves whole."""
    gaps: dict[str, list[float]] = field(default_factory=dict)
    """By fault: the longest time without any answer to a client of the balancer."""
    ended: Counter[str] = field(default_factory=Counter)
    """How updates ended in which a fault struck."""
    ends_at_start: int = 0
    """Of replicas that found no database as they started, and were started again."""
    clean: list[float] = field(default_factory=list)
    """Seconds of those without."""
    tried_again: list[str] = field(default_factory=list)
    """Why some of those were asked for twice."""
    failure: str = ""
    """Why it ended early: what did not end by itself, or did not agree."""

    def __post_init__(self) -> None:
        self.planner = Planner(self.chance, self.session)
        self._pool = ThreadPoolExecutor(1)
        good = [self.fleet.group(name) for name in ("one", "two", "three")]
        self._good = itertools.cycle(good)
        self.rest()

    # -- one fault --------------------------------------------------------------------------

    def round(self, case: Case) -> None:
        """A fault in an update if it meets its step, and an update without one."""
        target = self._refused if case.aborts else next(self._good)
        struck, asked = self._meet(case, target)
        if struck is not None:
            faults.end(struck, self.chance.choice(faults.SECONDS))
            self.planner.met[struck.case] += 1
        over = time.monotonic()
        took = self.fleet.until_serving()
        # One that starts without a database may end, and say so; no other.
        ends, self.fleet.ends = self.fleet.ends, []
        assert not ends or case.step in faults.STARTING, ends
        self.ends_at_start += len(ends)
        if struck is not None:
            self.recovered.setdefault(struck.case.fault, []).append(took)
            gap = self.heard.longest_gap(struck.at, over + took)
            self.gaps.setdefault(struck.case.fault, []).append(gap)
        how = self._outcome(asked, target)
        self.ended[how] += 1
        said = f"{case}: {'met' if struck else 'not met'}, {how}, whole after {took:.1f} s"
        print(f"{self.met}: {said}", file=sys.stderr, flush=True)
        self.rest()
        self.update()

    def _meet(self, case: Case, target: str) -> tuple[Struck | None, Future[str] | None]:
        """Have the fault happen in an update to this group."""
        if case.step == "at rest":
            return faults.strike_when_shown(case, self.fleet, self.meeting_seconds), None
        if case.step in faults.STARTING:
            return self._meet_starting(case, target)
        if case.step in faults.SHOWN:
            asked = self._pool.submit(self.fleet.ask, self.fleet.url, target)
            return faults.strike_when_shown(case, self.fleet, self.meeting_seconds), asked
        replica = self.chance.choice(self.fleet.replicas)
        struck = faults.strike_at_statement(case, replica)
        asked = self._pool.submit(self.fleet.ask, replica.url, target)
        met = _soon(struck, self.meeting_seconds)
        replica.way.forget()
        return met, asked

    def _meet_starting(self, case: Case, target: str) -> tuple[Struck, Future[str]]:
        """In a replica that was killed and is started again, in an update of the others."""
        replica = self.chance.choice(self.fleet.replicas)
        former = self.fleet.rows().members[replica.name]["id"]
        replica.kill()
        assert replica.process is not None
        replica.process.wait(60)
        asked = self._pool.submit(self.fleet.ask, self.fleet.url, target)
        before, sign = len(replica.printed()), faults.STARTING[case.step]
        replica.start()
        _soon(lambda: sign in replica.printed()[before:] or not replica.alive, START_SECONDS)
        return faults.strike(case, self.fleet, replica, former), asked

    def _outcome(self, asked: Future[str] | None, target: str) -> str:
        """How the update ended in which the fault struck; its record and the rows must agree."""
        if asked is None:
            return "none"
        try:
            work = asked.result(60)
        except ClientError as error:
            return f"no answer, or refused: {error.code}"
        state, rows = self.fleet.end_of(work), self.fleet.rows()
        happened = rows.fleet["group"] == target
        assert (state == "SUCCEEDED") == happened, f"{state}, and the rows say {rows.fleet}"
        return state

    @functools.cached_property
    def _refused(self) -> str:
        """A group that not all replicas can serve."""
        return self.fleet.group("refused", fails=True)

    # -- without faults ---------------------------------------------------------------------

    def update(self) -> None:
        """One update, by any replica, which must succeed."""
        began = time.monotonic()
        work = self._ask(next(self._good))
        if self.fleet.end_of(work) != "SUCCEEDED":
            # A lease may end just after its fault, or on a busy machine: then one is to try again.
            said = self.fleet.again(functools.partial(self.fleet.client().work_errors, work))
            assert {each["code"] for each in said} == {"NotReady"}, f"without faults: {said}"
            self.tried_again.append(said[0]["message"])
            self.fleet.until_serving()
            self.rest()
            work = self._ask(next(self._good))
            assert self.fleet.end_of(work) == "SUCCEEDED", "twice, without faults"
        self.clean.append(time.monotonic() - began)
        self.fleet.until_serving()
        self.rest()

    def _ask(self, target: str) -> str:
        """Where the machine is so busy that a lease ends, the answer is to try again."""
        for _ in range(3):
            with contextlib.suppress(ClientError):
                return self.fleet.ask(self.fleet.url, target)
            self.fleet.until_serving()
            self.rest()
        return self.fleet.ask(self.fleet.url, target)

    def rest(self) -> None:
        """All or none: every replica, the rows and the records name the same group."""
        rows = self.fleet.rows()
        generation, group = rows.fleet["generation"], rows.fleet["group"]
        self.groups[generation] = self.fleet.secrets[group]
        for each in self.fleet.replicas:
            status = self.fleet.client(each.url).status()
            served = status["generation"], status["groupId"]
            assert served == (generation, group), f"{each.name}: {served}, {rows.fleet}"
        until(lambda: self.fleet.recorded() == (group, []))

    # -- all of it --------------------------------------------------------------------------

    def run(self, cases: Iterable[Case], clients: int) -> None:
        """One after the other, under requests."""
        loop, fleet = self.fleet.loop, self.fleet
        asking = Clients(self.heard, KEYS, fleet.kind, alone=self.session)
        tasks = [loop.begin(asking.run(fleet.url, clients, 0.1))]
        # In the mode `session` what others got counts for nobody.
        if not self.session:
            tasks += [loop.begin(asking.probe(each.url, 0.1, 100)) for each in fleet.replicas]
        for case in cases:
            self.round(case)
            assert not any(task.done() for task in tasks), "clients have ended"
        for task in tasks:
            loop.loop.call_soon_threadsafe(task.cancel)
        self._pool.shutdown()

    def least_met(self, count: int, seconds: float) -> Iterator[Case]:
        """What was met least, until so many faults were met, or for so long."""
        deadline = time.monotonic() + seconds
        while self.met < count and time.monotonic() < deadline:
            yield self.planner.next()

    @property
    def met(self) -> int:
        return sum(self.planner.met.values())

    def figures(self) -> dict[str, Any]:
        found = self.heard.judge(self.groups, self.fleet.digests, self.fleet.kind.expected)
        return {
            "faults": self.met,
            "answers": len(self.heard.answers),
            "generations_that_answered": len({a.generation for a in self.heard.answers}),
            "refused": dict(self.heard.refused),
            "older_than_another_client_had": self.heard.behind,
            "violations": found,
            "failure": self.failure,
            "updates_without_faults": _summary(self.clean),
            "tried_again": self.tried_again,
            "updates_with_faults": dict(self.ended),
            "ended_at_their_start": self.ends_at_start,
            "seconds_to_whole_again": {k: _summary(v) for k, v in self.recovered.items()},
            "seconds_without_any_answer": {k: _summary(v) for k, v in self.gaps.items()},
            "steps": faults.table(self.planner.met),
            "never_met": self.planner.missing(),
        }


def _soon(condition: Callable[[], Any], seconds: float) -> Any:
    """What it returns when it is true, or at last."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {"count": 0}
    median, most = round(statistics.median(values), 2), round(max(values), 2)
    return {"count": len(values), "median": median, "most": most}


def run(
    directory: Path, count: int, seconds: float, seed: int, clients: int, mode: str, **more: Any
) -> dict[str, Any]:
    settings = {"mode": mode} | more.pop("settings", {})
    with running_fleet(directory, settings=settings, **more) as fleet:
        storm = Storm(fleet, random.Random(seed), session=mode == "session")
        try:
            storm.run(storm.least_met(count, seconds), clients)
        except (AssertionError, ClientError) as error:
            storm.failure = f"{type(error).__name__}: {error}"
        return storm.figures()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--faults", type=int, default=200)
    options.add_argument("--minutes", type=float, default=120.0)
    options.add_argument("--seed", type=int, default=16)
    options.add_argument("--clients", type=int, default=12)
    options.add_argument("--mode", choices=("global", "session"), default="global")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as place:
        found = run(
            Path(place), given.faults, given.minutes * 60, given.seed, given.clients, given.mode
        )
    print(json.dumps(found, indent=2))
    raise SystemExit(bool(found["violations"] or found["failure"]))


if __name__ == "__main__":
    main()
