"""Figures of a fleet: how long requests wait at a switch, what a death costs, throughput.

python -m tests.fleet.measure hold|many|death|store|throughput
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import generate_latest

from stacked.client import ClientError
from stacked.fleet.shared import Beat, Found, Join, Look, Mode, Report
from stacked.fleet.shared import Fleet as FleetRow
from stacked.metrics import REGISTRY
from stacked.registry.fleets import FleetStore
from tests.deployments import fleets
from tests.fleet import faults
from tests.fleet.clients import Clients, Heard
from tests.fleet.faults import Case
from tests.fleet.kinds import Doubles
from tests.fleet.processes import KEYS, Fleet, Replica, running_fleet
from tests.postgres import running_postgres

# Answers that take no time, so that what is measured is the switch.
AT_ONCE = Doubles(load_seconds=(0.0, 0.0), seconds=(0.0, 0.0))
_HELD = re.compile(r"^stacked_fleet_held_seconds_(sum|count) (\S+)$", re.MULTILINE)


def spread(values: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median_ms": round(statistics.median(ordered) * 1000, 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)] * 1000, 1),
        "most_ms": round(ordered[-1] * 1000, 1),
    }


def held(metrics: str) -> tuple[float, float]:
    """Sum and count of the holds that a process has seen."""
    found = {name: float(value) for name, value in _HELD.findall(metrics)}
    return found.get("sum", 0.0), found.get("count", 0.0)


@contextlib.contextmanager
def asking(fleet: Fleet, clients: int, pause: float = 0.0) -> Iterator[Heard]:
    heard = Heard()
    task = fleet.loop.begin(Clients(heard, KEYS).run(fleet.url, clients, pause))
    try:
        yield heard
    finally:
        fleet.loop.loop.call_soon_threadsafe(task.cancel)


def update(fleet: Fleet, group: str) -> float:
    """How long it took."""
    began = time.monotonic()
    work = fleet.ask(fleet.url, group)
    assert fleet.end_of(work) == "SUCCEEDED"
    took = time.monotonic() - began
    fleet.until_serving()
    return took


def hold(directory: Path, updates: int, replicas: int) -> dict[str, Any]:
    """Real processes under eight clients: each replica's own holds, and what requests take."""
    with running_fleet(directory, replicas, kind=AT_ONCE) as fleet:
        groups = itertools.cycle([fleet.group("one"), fleet.group("two")])
        holds, took = [], []
        before = {each.name: metrics_of(each) for each in fleet.replicas}
        with asking(fleet, 8, 0.01) as heard:
            time.sleep(2.0)  # without an update
            steady = [a.arrived - a.sent for a in heard.answers]
            began = time.monotonic()
            for _ in range(updates):
                took.append(update(fleet, next(groups)))
                for each in fleet.replicas:
                    (was, _), now = before[each.name], metrics_of(each)
                    holds.append(now[0] - was)
                    before[each.name] = now
        waited = [a.arrived - a.sent for a in heard.answers if a.sent > began]
        return {
            "replicas": replicas,
            "updates": updates,
            "held_by_each_replica": spread(holds),
            "updates_take": spread(took),
            "requests_without_updates": spread(steady),
            "requests_meanwhile": spread(waited),
            "refused": dict(heard.refused),
        }


def metrics_of(replica: Replica) -> tuple[float, float]:
    return held(httpx.get(f"{replica.url}/metrics", timeout=20).text)


async def many(directory: Path, updates: int, replicas: int) -> dict[str, Any]:
    """Replicas in this one process: the real driver and a real database, engines of doubles."""
    with running_postgres() as postgres:
        async with fleets.Fleet(directory, lease_seconds=3, hold_seconds=2) as fleet:
            fleet.place = postgres.shared(connections=3)
            members = await fleet.of(*(f"r{number}" for number in range(replicas)))
            holds, took = [], []
            async with fleet.under_requests():
                for number in range(updates):
                    group, before = fleet.machine.group(2 + number % 2), _held_here()
                    began = time.monotonic()
                    work = await members[0].update(group)
                    assert await members[0].end(work) == "SUCCEEDED"
                    await fleet.ready()
                    took.append(time.monotonic() - began)
                    after = _held_here()
                    assert after[1] - before[1] == replicas
                    holds.append((after[0] - before[0]) / replicas)
            return {
                "replicas": replicas,
                "updates": updates,
                "held_on_average_in_an_update": spread(holds),
                "updates_take": spread(took),
                "admitted": len(fleet.admitted),
            }


def _held_here() -> tuple[float, float]:
    return held(generate_latest(REGISTRY).decode())


# When one of three dies: `kill -9`.
DEATHS = (
    Case("at rest", "kill"),
    Case("preparing", "kill"),
    Case("held", "kill"),
    Case("held", "kill", coordinator=True),
)


def death(directory: Path, times: int) -> dict[str, Any]:
    """`kill -9` of one of three, and updates until one goes through."""
    found: dict[str, Any] = {}
    with running_fleet(directory, 3) as fleet, ThreadPoolExecutor(1) as pool:
        groups = itertools.cycle([fleet.group("one"), fleet.group("two")])
        with asking(fleet, 8, 0.01) as heard:
            for case in DEATHS:
                deaths = [_die(case, fleet, heard, groups, pool) for _ in range(times)]
                found[str(case)] = {what: spread([e[what] for e in deaths]) for what in deaths[0]}
        found["requests_lost_or_refused"] = dict(heard.refused)
        found["answers"] = len(heard.answers)
    return found


def _die(
    case: Case, fleet: Fleet, heard: Heard, groups: Iterator[str], pool: ThreadPoolExecutor
) -> dict[str, float]:
    """One death, and what it took."""
    before = {each.name: metrics_of(each)[0] for each in fleet.replicas}
    struck = asked = None
    while struck is None:
        fleet.until_serving()
        if case.step != "at rest":
            asked = pool.submit(fleet.ask, fleet.url, next(groups))
        struck = faults.strike_when_shown(case, fleet, 10)
    left = [each for each in fleet.replicas if each is not struck.replica]
    done = False
    while not done:
        with contextlib.suppress(ClientError):  # one that was begun may have no coordinator
            work = asked.result() if asked else fleet.ask(left[0].url, next(groups))
            done = fleet.end_of(work) == "SUCCEEDED"
        asked = None
    took = time.monotonic() - struck.at
    figures = {
        "without_any_answer": heard.longest_gap(struck.at, struck.at + took),
        "until_an_update_was_done": took,
        "held_by_one_that_is_left": max(metrics_of(e)[0] - before[e.name] for e in left),
    }
    faults.end(struck, 0)
    return figures | {"from_its_new_start_to_whole": fleet.until_serving()}


def store(seconds: float, members: int = 100) -> dict[str, Any]:
    """What PostgreSQL carries out on this machine for so many members: their reports, one after the
    other by its lock, and their looks.
    """
    with running_postgres() as postgres:
        shared = FleetStore(postgres.shared(connections=8))
        shared.carry_out("0", Found(FleetRow(Mode.GLOBAL, 1, "first", 1)))
        for member in range(members):
            shared.carry_out(str(member), Join(Report(str(member), f"r{member}", 1, 1)))
        beats, looks = itertools.count(), itertools.count()

        def reports() -> None:
            number = next(beats)
            id, beat = str(number % members), 2 + number // members
            shared.carry_out(id, Beat(Report(id, f"r{id}", beat, 1)))

        found = {
            "members": members,
            "reports_a_second": _rate(reports, seconds),
            "looks_a_second": _rate(
                lambda: shared.carry_out(str(next(looks) % members), Look()), seconds
            ),
        }
        shared.close()
        return found


def _rate(act: Callable[[], object], seconds: float, threads: int = 4) -> float:
    until, done = time.monotonic() + seconds, itertools.count()

    def go() -> None:
        while time.monotonic() < until:
            act()
            next(done)

    with ThreadPoolExecutor(threads) as pool:
        for each in [pool.submit(go) for _ in range(threads)]:
            each.result()
    return round(next(done) / seconds, 1)


def throughput(directory: Path, counts: Sequence[int], seconds: float) -> dict[str, Any]:
    """Fleets one after the other, through the same balancer; an answer waits for 20 ms."""
    found: dict[str, Any] = {}
    kind = Doubles(load_seconds=(0.0, 0.0), seconds=(0.02, 0.02))
    for count in counts:
        place = directory / str(count)
        place.mkdir()
        with running_fleet(place, count, kind=kind) as fleet, asking(fleet, 8 * count) as heard:
            time.sleep(3.0)
            before, began = len(heard.answers), time.monotonic()
            time.sleep(seconds)
            answers = heard.answers[before:]
            rate = len(answers) / (time.monotonic() - began)
            found[str(count)] = {
                "clients": 8 * count,
                "answers_a_second": round(rate, 1),
                "requests": spread([a.arrived - a.sent for a in answers]),
                "refused": dict(heard.refused),
            }
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("hold", "many", "death", "store", "throughput"))
    options.add_argument("--replicas", type=int, default=0)
    options.add_argument("--times", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as name:
        place = Path(name)
        match given.what:
            case "hold":
                found = hold(place, given.times or 50, given.replicas or 3)
            case "many":
                found = asyncio.run(many(place, given.times or 50, given.replicas or 16))
            case "death":
                found = death(place, given.times or 5)
            case "store":
                found = store(given.times or 10)
            case _:
                found = throughput(place, (1, 2, 4), given.times or 20)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
